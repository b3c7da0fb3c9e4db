/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "devices.h"
#include "scoped.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define STEP "dev"

static const struct device {
  const char *name, *source;
  unsigned major, minor;
} devices[] = {
    {"null", "/dev/null", 1, 3},     {"zero", "/dev/zero", 1, 5},       {"full", "/dev/full", 1, 7},
    {"random", "/dev/random", 1, 8}, {"urandom", "/dev/urandom", 1, 9}, {"tty", "/dev/tty", 5, 0},
};

static int mount_tmpfs(struct report *report) {
  scoped_fd context = fsopen("tmpfs", FSOPEN_CLOEXEC);
  if (context < 0 || fsconfig(context, FSCONFIG_SET_STRING, "size", "64k", 0) < 0 ||
      fsconfig(context, FSCONFIG_SET_STRING, "mode", "0755", 0) < 0 ||
      fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
    return fail(report, STEP, "tmpfs");
  int mount = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  return mount < 0 ? fail(report, STEP, "tmpfs") : mount;
}

static int make_device(int directory, const struct device *device, uint32_t owner,
                       struct report *report) {
  if (mknodat(directory, device->name, S_IFCHR | 0666, makedev(device->major, device->minor)) < 0 ||
      fchmodat(directory, device->name, 0666, 0) < 0 || /* whatever the umask is */
      fchownat(directory, device->name, owner, owner, AT_SYMLINK_NOFOLLOW) < 0)
    return fail(report, STEP, device->name);
  return 0;
}

int make_devices(uint32_t owner, struct report *report) {
  scoped_fd mount = mount_tmpfs(report);
  if (mount < 0)
    return -1;
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    if (make_device(mount, &devices[i], owner, report) < 0)
      return -1;
  if (fchownat(mount, "", owner, owner, AT_EMPTY_PATH) < 0)
    return fail(report, STEP, "tmpfs");
  return release_fd(&mount);
}

/* Bind a device of the host into the current directory, and see that it is the one it should be. */
static int bind_device(const struct device *device, struct report *report) {
  scoped_fd point = open(device->name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
  if (point < 0 || mount(device->source, device->name, NULL, MS_BIND, NULL) < 0)
    return fail(report, STEP, device->name);
  struct stat status;
  if (stat(device->name, &status) < 0)
    return fail(report, STEP, device->name);
  if (!S_ISCHR(status.st_mode) || status.st_rdev != makedev(device->major, device->minor))
    return fail_with(report, ENODEV, STEP, device->source);
  return 0;
}

int bind_devices(struct report *report) {
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    if (bind_device(&devices[i], report) < 0)
      return -1;
  return 0;
}
