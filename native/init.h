/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_INIT_H
#define HUTCH_INIT_H

#include <stdint.h>

struct init_options {
  int listener;     /* where the engine's requests come from; one connection is one program */
  int status;       /* the file that says why init ended by itself */
  int64_t deadline; /* CLOCK_BOOTTIME nanoseconds; 0 is none */
};

/* What a supervisor tells init: it alone has heard it from the engine. */
struct note {
  enum { NOTE_DEADLINE, NOTE_MAIN_STARTED, NOTE_MAIN_EXITED } kind;
  int64_t value; /* a deadline; the supervisor's pid; a wait status */
};

/* PID 1 of a sandbox: reap, accept connections, keep the deadline. */
_Noreturn void serve(const struct init_options *options);

#endif
