/* SPDX-License-Identifier: Apache-2.0 */
/* A program that runs: its timeout, how it is ended, and what it leaves to say. */
#ifndef HUTCH_RUNNING_H
#define HUTCH_RUNNING_H

#include "program.h"

#include <stdbool.h>
#include <stdint.h>

struct running {
  struct program program;
  int children; /* signalfd */
  uint64_t grace_ms;
  int64_t next_ms; /* when to send the next signal, on CLOCK_MONOTONIC; 0 is never */
  bool terminating, over;
  struct wire_exited exited;
};

void running_begin(struct running *running, const struct exec *exec, int children);

/* How long poll(2) may wait for this program: milliseconds, -1 without end. */
int running_patience(const struct running *running);

/* Do what time has come for. */
void running_tick(struct running *running);

/* After SIGCHLD. When the program itself has ended, `over` is set. */
void running_reap(struct running *running);

/* SIGTERM for the whole tree, SIGKILL for what is left of it after the grace or the program. */
void running_terminate(struct running *running, uint32_t why);

/* SIGKILL for the whole tree; returns when nothing of it runs, and `over` is set. */
void running_kill(struct running *running, uint32_t why);

/* Do what a client's message asks: WIRE_SIGNAL, WIRE_KILL or WIRE_RESIZE. */
void running_obey(struct running *running, uint32_t type, const void *body, size_t length);

#endif
