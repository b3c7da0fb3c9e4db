/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "disk.h"
#include "scoped.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define STEP "disk limit"
#define MAX_ATTEMPTS 64 /* others take loop devices too */
#define DEVICE_NAME 32

/* A loop device that ends when nobody uses it any more: loop(4). */
static int attach_loop(int image, char name[static DEVICE_NAME], struct report *report) {
  scoped_fd control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0)
    return fail(report, STEP, "/dev/loop-control");
  for (int i = 0; i < MAX_ATTEMPTS; i++) {
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0)
      return fail(report, STEP, "a free loop device");
    snprintf(name, DEVICE_NAME, "/dev/loop%d", number);
    scoped_fd device = open(name, O_RDWR | O_CLOEXEC);
    if (device < 0)
      return fail(report, STEP, name);
    struct loop_config config = {
        .fd = (unsigned)image,
        .info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
    };
    if (ioctl(device, LOOP_CONFIGURE, &config) == 0)
      return release_fd(&device);
    if (errno != EBUSY) /* another process was quicker */
      return fail(report, STEP, name);
  }
  return fail_with(report, EBUSY, STEP, "a free loop device");
}

static int mount_ext4(const char *device, uint64_t attributes, struct report *report) {
  scoped_fd context = fsopen("ext4", FSOPEN_CLOEXEC);
  if (context < 0)
    return fail(report, STEP, "ext4");
  /* What the sandbox deletes is given back to the host. */
  if (fsconfig(context, FSCONFIG_SET_STRING, "source", device, 0) < 0 ||
      fsconfig(context, FSCONFIG_SET_FLAG, "discard", NULL, 0) < 0 ||
      fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
    return fail(report, STEP, device);
  int mount = fsmount(context, FSMOUNT_CLOEXEC, (unsigned)attributes);
  return mount < 0 ? fail(report, STEP, "mount") : mount;
}

static int make_directory(int mount, const char *name, mode_t mode, struct report *report) {
  if (mkdirat(mount, name, mode) < 0)
    return errno == EEXIST ? 0 : fail(report, STEP, name);
  return fchmodat(mount, name, mode, 0) < 0 ? fail(report, STEP, name) : 0;
}

static int map_mount(int mount, int user_namespace, struct report *report) {
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (unsigned)user_namespace};
  if (mount_setattr(mount, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
    return fail(report, STEP, "the id map");
  return 0;
}

int mount_disk(int image, uint64_t attributes, int user_namespace, struct report *report) {
  char name[DEVICE_NAME];
  scoped_fd device = attach_loop(image, name, report);
  if (device < 0)
    return -1;
  scoped_fd mount = mount_ext4(name, attributes, report);
  if (mount < 0 || make_directory(mount, "upper", 0755, report) < 0 ||
      make_directory(mount, "work", 0700, report) < 0)
    return -1;
  if (user_namespace >= 0 && map_mount(mount, user_namespace, report) < 0)
    return -1;
  return release_fd(&mount);
}
