/* SPDX-License-Identifier: Apache-2.0 */
/* Ownership by scope: what such a variable holds is released when it goes out of sight. */
#ifndef HUTCH_SCOPED_H
#define HUTCH_SCOPED_H

#include <stdlib.h>
#include <unistd.h>

static inline void scoped_close(const int *fd) {
  if (*fd >= 0)
    close(*fd);
}

static inline void scoped_release(void *pointer) { free(*(void **)pointer); }

#define scoped_fd __attribute__((cleanup(scoped_close))) int
#define scoped_memory __attribute__((cleanup(scoped_release)))

/* Hand a scoped descriptor on to another owner. */
static inline int release_fd(int *fd) {
  int owned = *fd;
  *fd = -1;
  return owned;
}

#endif
