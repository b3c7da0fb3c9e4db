/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launch phase, outside the sandbox. What needs privilege over the host happens here, by
 * descriptor: joining cgroups, mapping ids, cloning the image's layers. The rest is done by the
 * child that becomes the sandbox's init (sandbox.c), which answers the engine itself. Should this
 * process fail, the child finds its end of the socket pair closed and ends.
 */
#define _GNU_SOURCE
#include "launch.h"
#include "devices.h"
#include "disk.h"
#include "launch_request.h"
#include "messages.h"
#include "sandbox.h"
#include "scoped.h"
#include "syscalls.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>

#define NAMESPACES                                                                                 \
  ((uint64_t)CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |            \
   CLONE_NEWUTS)
#define INIT_OOM_SCORE "0"

static int write_text(int directory, const char *name, const char *text) {
  scoped_fd fd = openat(directory, name, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return -1;
  return write(fd, text, strlen(text)) < 0 ? -1 : 0;
}

/* Before the child exists, so that it is born inside: v1 cannot be joined by clone3(2). */
static int join_cgroups(const struct launch *launch, struct report *report) {
  for (uint32_t i = 0; i < launch->cgroup1_count; i++)
    if (write(launch->cgroup1[i], "0", 1) < 0)
      return fail(report, "cgroup", "a v1 hierarchy");
  return 0;
}

/* Take an effective uid and keep root's capabilities, which the kernel ties to uid 0. */
static int act_as(uid_t uid) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets) < 0 || setresuid((uid_t)-1, uid, (uid_t)-1) < 0)
    return -1;
  for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
    sets[i].effective = sets[i].permitted;
  return (int)syscall(SYS_capset, &header, sets);
}

static pid_t clone_into_namespaces(const struct launch *launch, struct report *report) {
  struct clone_args args = {.flags = NAMESPACES, .exit_signal = SIGCHLD};
  if (launch->cgroup2 >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = (unsigned)launch->cgroup2;
  }
  pid_t pid = fork_with(&args);
  if (pid < 0)
    fail(report, "namespaces", errno == EBUSY || errno == EOPNOTSUPP ? "or the v2 cgroup" : "");
  return pid;
}

/*
 * What the kernel counts by user (inotify instances, queued signals, message queues) is charged to
 * the owner of the user namespace too. That is a uid of the sandbox's own: were it root, one
 * sandbox could use up what the host's root and all other sandboxes need.
 */
static pid_t fork_into_namespaces(const struct launch *launch, struct report *report) {
  if (launch->owner == 0)
    return clone_into_namespaces(launch, report);
  if (act_as(launch->owner) < 0)
    return fail(report, "namespaces", "their owner");
  pid_t pid = clone_into_namespaces(launch, report);
  if (pid > 0 && act_as(0) < 0) {
    kill(pid, SIGKILL);
    return fail(report, "namespaces", "their owner");
  }
  return pid;
}

static int map_ids(const struct launch *launch, int process, struct report *report) {
  if (write_text(process, "uid_map", launch->uid_map) < 0)
    return fail(report, "uid map", launch->uid_map);
  if (write_text(process, "gid_map", launch->gid_map) < 0)
    return fail(report, "uid map", launch->gid_map);
  /* With CAP_SYS_RESOURCE this sets the floor too, below which nothing inside can go. */
  if (launch_has(launch, WIRE_OOM_RESET) &&
      write_text(process, "oom_score_adj", INIT_OOM_SCORE) < 0)
    return fail(report, "oom score", INIT_OOM_SCORE);
  return 0;
}

/* A detached copy of a mount, with more attributes; mapped by `user_namespace` unless it is -1. */
static int clone_mount(int directory, uint64_t attributes, int user_namespace) {
  scoped_fd mount = open_tree(directory, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (mount < 0)
    return -1;
  struct mount_attr attr = {.attr_set = attributes, .propagation = MS_PRIVATE};
  if (user_namespace >= 0) {
    attr.attr_set |= MOUNT_ATTR_IDMAP;
    attr.userns_fd = (unsigned)user_namespace;
  }
  if (mount_setattr(mount, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return -1;
  return release_fd(&mount);
}

static int open_writable(const struct launch *launch, uint64_t attributes, int user_namespace,
                         struct report *report) {
  if (launch_has(launch, WIRE_DISK))
    return mount_disk(launch->rw, attributes, user_namespace, report);
  int mount = clone_mount(launch->rw, attributes, user_namespace);
  return mount < 0 ? fail(report, "id-mapped layers", "the writable directory") : mount;
}

/* Fill `mounts`: the writable directory, the layers, lowest first, the binds, the devices. */
static int clone_mounts(const struct launch *launch, int process, int *mounts, size_t *count,
                        struct report *report) {
  scoped_fd user_namespace = -1;
  if (launch_has(launch, WIRE_IDMAP_LAYERS)) {
    user_namespace = openat(process, "ns/user", O_RDONLY | O_CLOEXEC);
    if (user_namespace < 0)
      return fail(report, "id-mapped layers", "ns/user");
  }
  uint64_t common = MOUNT_ATTR_NODEV;
  if (!launch_has(launch, WIRE_ALLOW_ESCALATION))
    common |= MOUNT_ATTR_NOSUID;
  mounts[0] = open_writable(launch, common, user_namespace, report);
  if (mounts[0] < 0)
    return -1;
  *count = 1;
  for (uint32_t i = 0; i < launch->layer_count; i++, ++*count) {
    mounts[*count] = clone_mount(launch->layers[i], common | MOUNT_ATTR_RDONLY, user_namespace);
    if (mounts[*count] < 0)
      return fail(report, "id-mapped layers", "a layer");
  }
  for (uint32_t i = 0; i < launch->bind_count; i++, ++*count) {
    /* Not mapped: what only the host's root may read stays so. */
    mounts[*count] =
        clone_mount(launch->binds[i], MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_RDONLY, -1);
    if (mounts[*count] < 0)
      return fail(report, "bind", launch->bind_paths[i]);
  }
  if (!launch_has(launch, WIRE_OWN_DEVICES))
    return 0;
  mounts[*count] = make_devices(launch->owner, report);
  return mounts[(*count)++] < 0 ? -1 : 0;
}

/* What the child waits for: it is mapped, and these are its mounts. */
static int equip(const struct launch *launch, pid_t child, int sock, struct report *report) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d", child);
  scoped_fd process = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (process < 0)
    return fail(report, "namespaces", path);
  int mounts[LAUNCH_MAX_MOUNTS];
  size_t count = 0;
  if (map_ids(launch, process, report) < 0 ||
      clone_mounts(launch, process, mounts, &count, report) < 0)
    return -1;
  int32_t pid = child;
  if (send_message(sock, WIRE_READY, &pid, sizeof pid, mounts, count) < 0)
    return fail(report, "hutch-init", "the hand-over");
  return 0;
}

static int start(const struct launch *launch, int engine, struct report *report) {
  int pair[2];
  if (join_cgroups(launch, report) < 0)
    return -1;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
    return fail(report, "hutch-init", "socketpair");
  pid_t child = fork_into_namespaces(launch, report);
  if (child < 0)
    return -1;
  if (child == 0) {
    close(pair[0]);
    become_sandbox(launch, engine, pair[1]);
  }
  close(pair[1]);
  if (equip(launch, child, pair[0], report) == 0)
    return 0;
  kill(child, SIGKILL);
  return -1;
}

/* The arguments were set before it was known for which sandbox they would be. */
static int take_name(const struct launch *launch, char *name, struct report *report) {
  size_t room = strlen(name), length = strlen(launch->id);
  if (length > room)
    return fail_with(report, E2BIG, "request", "the id");
  memset(name, 0, room);
  memcpy(name, launch->id, length);
  return 0;
}

static int serve_launch(int engine, char *name) {
  struct report report = {0};
  struct request request;
  struct launch launch = {0};
  int result;
  if (receive_request(engine, &request) < 0)
    result = fail(&report, "request", "");
  else
    result = parse_launch(&request, &launch, &report);
  if (result == 0)
    result = take_name(&launch, name, &report);
  if (result == 0)
    result = start(&launch, engine, &report);
  if (result < 0)
    send_report(engine, &report);
  release_launch(&launch);
  release_request(&request);
  return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* Serve one launch in a process of its own, which joins cgroups that this one must not. */
static int fork_launcher(int engine, int sock, char *name) {
  pid_t pid = fork();
  if (pid == 0) {
    signal(SIGCHLD, SIG_DFL);
    close(engine);
    exit(serve_launch(sock, name));
  }
  return pid < 0 ? -1 : 0;
}

int launch_main(int engine, char *name) {
  signal(SIGCHLD, SIG_IGN); /* launchers are reaped by the kernel: wait(2) */
  for (;;) {
    uint8_t nothing;
    int fds[WIRE_MAX_FDS];
    size_t count;
    if (receive_with_fds(engine, &nothing, sizeof nothing, fds, &count) <= 0)
      return EXIT_SUCCESS; /* the engine has ended */
    if (count != 1)
      return EXIT_FAILURE;
    struct report report = {0};
    if (fork_launcher(engine, fds[0], name) < 0) {
      fail(&report, "hutch-init", "fork");
      send_report(fds[0], &report);
    }
    close(fds[0]);
  }
}
