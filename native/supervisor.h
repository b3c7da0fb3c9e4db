/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_SUPERVISOR_H
#define HUTCH_SUPERVISOR_H

struct supervision {
  int connection; /* from the engine: one request */
  int notes;      /* to init: struct note */
  int children;   /* a signalfd for SIGCHLD; it tells each process of its own */
};

/* Serve one connection: run a program and watch it to its end. */
_Noreturn void supervise(const struct supervision *supervision);

#endif
