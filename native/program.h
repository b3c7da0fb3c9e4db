/* SPDX-License-Identifier: Apache-2.0 */
/* Starting one program, with its standard streams. */
#ifndef HUTCH_PROGRAM_H
#define HUTCH_PROGRAM_H

#include "exec_request.h"
#include "users.h"

/* A started program and our ends of its streams; -1 where there is none. */
struct program {
  pid_t pid;
  struct identity identity;
  int input, output, errors; /* pipes */
  int terminal;              /* the master, instead of pipes */
  int io_counters;           /* its /proc/PID/io */
};

/*
 * Start what `exec` says and return once it runs, or has failed to: a program that cannot be
 * executed says so on its own standard error and exits with 126 or 127, as a shell's does.
 */
int start_program(const struct exec *exec, struct program *program, struct report *report);

#endif
