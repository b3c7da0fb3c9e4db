/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The root filesystem of a sandbox: an overlay of its layers with a private /proc and a minimal
 * /dev. The pieces are attached in a private tmpfs that hides a directory of the host. A mount
 * point inside the root is opened one component at a time, through no symbolic link, whatever the
 * image says; mount(2) then takes "." or a name in a filesystem made here.
 */
#define _GNU_SOURCE
#include "rootfs.h"
#include "devices.h"
#include "kernel_paths.h"
#include "scoped.h"
#include "syscalls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define STAGING "/tmp" /* on every host; hidden by the staging tmpfs for this process alone */
#define EMPTY STAGING "/empty"
#define MOUNT_POINT (RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH)
#define MAX_TERMINALS "64" /* the host has some thousands for all */
#define TTY_GID "5"        /* "tty" in every distribution: devpts(5) */

static int attach(int mount, int directory, const char *name) {
  return move_mount(mount, "", directory, name, MOVE_MOUNT_F_EMPTY_PATH);
}

static int stage(struct sandbox *sandbox, struct report *report) {
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
    return fail(report, "overlay root", "private mounts");
  if (mount("tmpfs", STAGING, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700,size=256k") < 0)
    return fail(report, "overlay root", "staging");
  sandbox->staging = open(STAGING, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (sandbox->staging < 0 || fchdir(sandbox->staging) < 0)
    return fail(report, "overlay root", "staging");
  if (mkdir("empty", 0755) < 0 || mkdir("root", 0755) < 0 || mkdir("rw", 0755) < 0)
    return fail(report, "overlay root", "staging");
  if (mount("tmpfs", "empty", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
            "mode=0555,size=4k") < 0)
    return fail(report, "overlay root", "an empty directory");
  return 0;
}

/* The layers become directories 0 (the lowest) and up: what overlay's options name. */
static int attach_layers(struct sandbox *sandbox, struct report *report) {
  if (attach(sandbox->mounts[0], sandbox->staging, "rw") < 0)
    return fail(report, "overlay root", "the writable directory");
  for (uint32_t i = 0; i < sandbox->launch->layer_count; i++) {
    char name[16];
    snprintf(name, sizeof name, "%u", i);
    if (mkdir(name, 0755) < 0 || attach(sandbox->mounts[1 + i], sandbox->staging, name) < 0)
      return fail(report, "overlay root", name);
  }
  return 0;
}

static int mount_overlay(struct sandbox *sandbox, struct report *report) {
  char options[64 + 5 * LAUNCH_MAX_LAYERS] =
      "userxattr,upperdir=rw/upper,workdir=rw/work,lowerdir=";
  size_t length = strlen(options);
  for (uint32_t i = sandbox->launch->layer_count; i-- > 0;)
    length += (size_t)snprintf(options + length, sizeof options - length, i > 0 ? "%u:" : "%u", i);
  unsigned long flags = MS_NODEV;
  if (!launch_has(sandbox->launch, WIRE_ALLOW_ESCALATION))
    flags |= MS_NOSUID;
  if (mount("overlay", "root", "overlay", flags, options) < 0)
    return fail(report, "overlay root", "mount");
  sandbox->root = openat(sandbox->staging, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
  return sandbox->root < 0 ? fail(report, "overlay root", "root") : 0;
}

/* Step into a directory of the root that something is to be mounted on. */
static int enter_mount_point(const struct sandbox *sandbox, const char *name, const char *step,
                             struct report *report) {
  scoped_fd point = open_resolved(sandbox->root, name, O_PATH | O_DIRECTORY, MOUNT_POINT);
  if (point < 0 || fchdir(point) < 0)
    return fail(report, step, name);
  return 0;
}

/* There is no sysfs: it would show the host's hardware, and nothing here needs it. */
static int hide_sys(struct sandbox *sandbox, struct report *report) {
  if (enter_mount_point(sandbox, "sys", "masked paths", report) < 0)
    return -1;
  return mount(EMPTY, ".", NULL, MS_BIND, NULL) < 0 ? fail(report, "masked paths", "/sys") : 0;
}

static const struct {
  const char *name, *target;
} dev_links[] = {
    {"fd", "/proc/self/fd"},       {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
    {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
};

static int fill_dev(const struct launch *launch, struct report *report) {
  for (size_t i = 0; i < sizeof dev_links / sizeof *dev_links; i++)
    if (symlink(dev_links[i].target, dev_links[i].name) < 0)
      return fail(report, "dev", dev_links[i].name);
  if (mkdir("pts", 0755) < 0 ||
      mount("devpts", "pts", "devpts", MS_NOSUID | MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,max=" MAX_TERMINALS ",gid=" TTY_GID) < 0)
    return fail(report, "dev", "pts");
  char options[64];
  snprintf(options, sizeof options, "mode=1777,size=%llu", (unsigned long long)launch->shm_size);
  if (mkdir("shm", 01777) < 0 ||
      mount("tmpfs", "shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options) < 0)
    return fail(report, "dev", "shm");
  return 0;
}

/* The filesystem with the devices, which the launcher has made, or in rootless mode one with the
 * host's own. */
static int mount_devices(struct sandbox *sandbox, struct report *report) {
  if (enter_mount_point(sandbox, "dev", "dev", report) < 0)
    return -1;
  if (launch_has(sandbox->launch, WIRE_OWN_DEVICES)) {
    if (attach(sandbox->mounts[launch_mounts(sandbox->launch) - 1], AT_FDCWD, ".") < 0)
      return fail(report, "dev", "tmpfs");
    return enter_mount_point(sandbox, "dev", "dev", report);
  }
  if (mount("tmpfs", ".", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k") < 0)
    return fail(report, "dev", "tmpfs");
  if (enter_mount_point(sandbox, "dev", "dev", report) < 0)
    return -1;
  return bind_devices(report);
}

static int mount_dev(struct sandbox *sandbox, struct report *report) {
  if (mount_devices(sandbox, report) < 0 || fill_dev(sandbox->launch, report) < 0)
    return -1;
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
  if (mount_setattr(AT_FDCWD, ".", 0, &attr, sizeof attr) < 0)
    return fail(report, "dev", "read-only");
  sandbox->null = open("null", O_PATH | O_CLOEXEC);
  return sandbox->null < 0 ? fail(report, "dev", "null") : 0;
}

static int cover_with(int cover, const char *name) {
  scoped_fd mount = open_tree(cover, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  return mount < 0 ? -1 : attach(mount, AT_FDCWD, name);
}

/* Cover a file by the sandbox's own /dev/null, a directory by an empty one. */
static int mask(const struct sandbox *sandbox, const struct kernel_path *path,
                struct report *report) {
  int result = path->directory ? mount(EMPTY, path->name, NULL, MS_BIND, NULL)
                               : cover_with(sandbox->null, path->name);
  return result < 0 && errno != ENOENT ? fail(report, "masked paths", path->name) : 0;
}

/* /proc/sys: most of what it sets is the whole host's. */
static int seal_sysctls(struct report *report) {
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
  if (mount("sys", "sys", NULL, MS_BIND, NULL) < 0 ||
      mount_setattr(AT_FDCWD, "sys", 0, &attr, sizeof attr) < 0)
    return fail(report, "masked paths", "sys");
  return 0;
}

static int mount_proc(struct sandbox *sandbox, struct report *report) {
  if (enter_mount_point(sandbox, "proc", "proc", report) < 0)
    return -1;
  if (mount("proc", ".", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
    return fail(report, "proc", "the host's own /proc must be visible in full");
  if (enter_mount_point(sandbox, "proc", "proc", report) < 0)
    return -1;
  for (const struct kernel_path *path = masked_paths; path->name != NULL; path++)
    if (mask(sandbox, path, report) < 0)
      return -1;
  return seal_sysctls(report);
}

/* Open a directory of the root by an absolute path, making what is missing of it. */
static int make_directories(int root, const char *path) {
  scoped_fd at = open_resolved(root, ".", O_PATH | O_DIRECTORY, MOUNT_POINT);
  scoped_memory char *rest = strdup(path);
  if (at < 0 || rest == NULL)
    return -1;
  char *position = NULL;
  for (char *name = strtok_r(rest, "/", &position); name != NULL;
       name = strtok_r(NULL, "/", &position)) {
    if (mkdirat(at, name, 0755) < 0 && errno != EEXIST && errno != EROFS)
      return -1;
    int next = open_resolved(at, name, O_PATH | O_DIRECTORY, MOUNT_POINT);
    if (next < 0)
      return -1;
    close(at);
    at = next;
  }
  return release_fd(&at);
}

static int mount_tmpfs(const struct sandbox *sandbox, const struct tmpfs_mount *wanted,
                       struct report *report) {
  scoped_fd point = make_directories(sandbox->root, wanted->path);
  if (point < 0 || fchdir(point) < 0)
    return fail(report, "tmpfs", wanted->path);
  char options[64];
  snprintf(options, sizeof options, "mode=1777,size=%llu", (unsigned long long)wanted->size);
  if (mount("tmpfs", ".", "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
    return fail(report, "tmpfs", wanted->path);
  return 0;
}

static int mount_tmpfses(struct sandbox *sandbox, struct report *report) {
  for (size_t i = 0; i < sandbox->launch->tmpfs_count; i++)
    if (mount_tmpfs(sandbox, &sandbox->launch->tmpfs[i], report) < 0)
      return -1;
  return 0;
}

static int attach_binds(struct sandbox *sandbox, struct report *report) {
  const struct launch *launch = sandbox->launch;
  const int *binds = sandbox->mounts + 1 + launch->layer_count;
  for (uint32_t i = 0; i < launch->bind_count; i++) {
    scoped_fd point = make_directories(sandbox->root, launch->bind_paths[i]);
    if (point < 0 ||
        move_mount(binds[i], "", point, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
      return fail(report, "bind", launch->bind_paths[i]);
  }
  return 0;
}

static int seal_root(struct sandbox *sandbox, struct report *report) {
  if (!launch_has(sandbox->launch, WIRE_READ_ONLY))
    return 0;
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
  if (mount_setattr(sandbox->root, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return fail(report, "overlay root", "read-only");
  return 0;
}

/* pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and goes. */
static int pivot(struct sandbox *sandbox, struct report *report) {
  if (fchdir(sandbox->root) < 0 || swap_root(".", ".") < 0)
    return fail(report, "pivot_root", "");
  if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
    return fail(report, "pivot_root", "the old root");
  return 0;
}

static int (*const steps[])(struct sandbox *, struct report *) = {
    stage,    attach_layers, mount_overlay, mount_dev, mount_proc,
    hide_sys, attach_binds,  mount_tmpfses, seal_root, pivot,
};

int assemble_root(struct sandbox *sandbox, struct report *report) {
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
    if (steps[i](sandbox, report) < 0)
      return -1;
  return 0;
}
