/* SPDX-License-Identifier: Apache-2.0 */
/* System calls for which the C library of Debian 12 has no function. */
#ifndef HUTCH_SYSCALLS_H
#define HUTCH_SYSCALLS_H

#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* openat2(2) */
static inline int open_resolved(int directory, const char *path, int flags, uint64_t resolve) {
  struct open_how how = {.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC), .resolve = resolve};
  return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

/* clone3(2), as fork does it: both return on their own copy of the stack. */
static inline pid_t fork_with(struct clone_args *args) {
  return (pid_t)syscall(SYS_clone3, args, sizeof *args);
}

/* pivot_root(2) */
static inline int swap_root(const char *new_root, const char *put_old) {
  return (int)syscall(SYS_pivot_root, new_root, put_old);
}

#endif
