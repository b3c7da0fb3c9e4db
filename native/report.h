/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What went wrong: the step, the errno and what it was about. A step that fails fills one in and
 * returns -1; whoever called it passes that on until it reaches a socket.
 */
#ifndef HUTCH_REPORT_H
#define HUTCH_REPORT_H

#include <errno.h>
#include <stdio.h>

struct report {
  char step[32]; /* a name that docs/security.md lists, or a stage of an exec */
  int error;     /* errno */
  char subject[256];
};

/* Note errno for `step` about `subject`, and return -1. */
static inline int fail(struct report *report, const char *step, const char *subject) {
  report->error = errno;
  snprintf(report->step, sizeof report->step, "%s", step);
  snprintf(report->subject, sizeof report->subject, "%s", subject);
  return -1;
}

/* As `fail`, for an error that no system call has set. */
static inline int fail_with(struct report *report, int error, const char *step,
                            const char *subject) {
  errno = error;
  return fail(report, step, subject);
}

#endif
