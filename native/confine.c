/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "confine.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What root of a sandbox keeps, over its own files, processes and ports; never over the host's. */
#define KEPT                                                                                       \
  (1U << CAP_CHOWN | 1U << CAP_DAC_OVERRIDE | 1U << CAP_FOWNER | 1U << CAP_FSETID |                \
   1U << CAP_KILL | 1U << CAP_SETGID | 1U << CAP_SETUID | 1U << CAP_NET_BIND_SERVICE |             \
   1U << CAP_SYS_CHROOT)

int limit_resources(struct sandbox *sandbox, struct report *report) {
  for (size_t i = 0; i < sandbox->launch->rlimit_count; i++) {
    const struct resource_limit *limit = &sandbox->launch->rlimits[i];
    struct rlimit value = {.rlim_cur = limit->soft, .rlim_max = limit->hard};
    if (setrlimit((__rlimit_resource_t)limit->resource, &value) < 0)
      return fail(report, "rlimits", "");
  }
  return 0;
}

static int forbid_new_privileges(const struct launch *launch, struct report *report) {
  if (launch_has(launch, WIRE_ALLOW_ESCALATION))
    return 0;
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? fail(report, "no_new_privs", "") : 0;
}

/* Before the capabilities go: without no_new_privs, CAP_SYS_ADMIN is what allows a filter. */
static int filter_syscalls(const struct launch *launch, struct report *report) {
  struct sock_fprog program = {.len = launch->filter_length, .filter = launch->filter};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
    return fail(report, "seccomp", "");
  return 0;
}

static int drop_capabilities(struct report *report) {
  for (unsigned long capability = 0; capability <= CAP_LAST_CAP; capability++)
    if ((capability >= 32 || (KEPT & 1U << capability) == 0) &&
        prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 && errno != EINVAL)
      return fail(report, "capabilities", "the bounding set");
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct sets[2] = {{.effective = KEPT, .permitted = KEPT}};
  if (syscall(SYS_capset, &header, sets) < 0)
    return fail(report, "capabilities", "");
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
    return fail(report, "capabilities", "the ambient set");
  return 0;
}

int confine(struct sandbox *sandbox, struct report *report) {
  if (forbid_new_privileges(sandbox->launch, report) < 0 ||
      filter_syscalls(sandbox->launch, report) < 0 || drop_capabilities(report) < 0)
    return -1;
  /* What runs as the sandbox's root may not trace this process, nor reach its descriptors. */
  return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? fail(report, "capabilities", "dumpable") : 0;
}
