/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "sandbox.h"
#include "confine.h"
#include "init.h"
#include "messages.h"
#include "rootfs.h"
#include "scoped.h"
#include "syscalls.h"

#include <errno.h>
#include <grp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* The launcher's message: our pid as the engine sees it, and the mounts. */
static int receive_equipment(struct sandbox *sandbox, int launcher, int32_t *pid) {
  struct {
    struct wire_message_header header;
    int32_t pid;
  } message;
  int fds[WIRE_MAX_FDS];
  size_t count;
  ssize_t received = receive_with_fds(launcher, &message, sizeof message, fds, &count);
  if (received != sizeof message || count != launch_mounts(sandbox->launch))
    return -1;
  memcpy(sandbox->mounts, fds, count * sizeof *fds);
  *pid = message.pid;
  return 0;
}

static int set_hostname(struct sandbox *sandbox, struct report *report) {
  const char *name = sandbox->launch->hostname;
  return sethostname(name, strlen(name)) < 0 ? fail(report, "hostname", name) : 0;
}

static int bring_loopback_up(struct sandbox *sandbox, struct report *report) {
  (void)sandbox;
  scoped_fd sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
  if (sock < 0 || ioctl(sock, SIOCSIFFLAGS, &request) < 0)
    return fail(report, "loopback", "lo");
  return 0;
}

/* Only now that this process is in its cgroups: their roots are what it will see as "/". */
static int enter_cgroup_namespace(struct sandbox *sandbox, struct report *report) {
  (void)sandbox;
  return unshare(CLONE_NEWCGROUP) < 0 ? fail(report, "namespaces", "cgroup") : 0;
}

static int become_root(struct sandbox *sandbox, struct report *report) {
  (void)sandbox;
  if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
    return fail(report, "uid map", "root");
  if (setsid() < 0)
    return fail(report, "namespaces", "session");
  umask(022);
  return 0;
}

typedef int (*layer)(struct sandbox *, struct report *);

/* Those that need no ids, while the launcher still maps them. */
static const layer first_layers[] = {enter_cgroup_namespace, set_hostname, bring_loopback_up, NULL};

/* All others, in the order in which each still has what it needs. */
static const layer layers[] = {become_root, assemble_root, limit_resources, confine, NULL};

static int apply(const layer *wanted, struct sandbox *sandbox, struct report *report) {
  for (; *wanted != NULL; wanted++)
    if ((*wanted)(sandbox, report) < 0)
      return -1;
  return 0;
}

static _Noreturn void give_up(int engine, const struct report *report) {
  send_report(engine, report);
  _exit(EXIT_FAILURE);
}

_Noreturn void become_sandbox(const struct launch *launch, int engine, int launcher) {
  struct sandbox sandbox = {.launch = launch, .staging = -1, .root = -1, .null = -1};
  struct report report = {0};
  int32_t pid;
  if (apply(first_layers, &sandbox, &report) < 0)
    give_up(engine, &report);
  if (receive_equipment(&sandbox, launcher, &pid) < 0)
    _exit(EXIT_FAILURE); /* the launcher has failed, and said so */
  int pidfd = pidfd_open(getpid(), 0);
  if (pidfd < 0)
    fail(&report, "hutch-init", "pidfd");
  if (pidfd < 0 || apply(layers, &sandbox, &report) < 0)
    give_up(engine, &report);
  if (send_message(engine, WIRE_READY, &pid, sizeof pid, &pidfd, 1) < 0)
    _exit(EXIT_FAILURE); /* nobody waits for this sandbox any more */
  struct init_options options = {
      .listener = launch->listener,
      .status = launch->status,
      .deadline = launch->deadline,
  };
  serve(&options);
}
