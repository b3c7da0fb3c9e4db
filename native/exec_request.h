/* SPDX-License-Identifier: Apache-2.0 */
/* A WIRE_EXEC, read and checked. */
#ifndef HUTCH_EXEC_REQUEST_H
#define HUTCH_EXEC_REQUEST_H

#include "messages.h"

#include <stdbool.h>
#include <stdint.h>

/* The descriptors belong to the request it was read from. */
struct exec {
  char **argv;        /* NULL-terminated; never empty */
  char **environment; /* NULL-terminated */
  char *cwd, *user;
  uint32_t flags; /* enum wire_exec_flag */
  struct {
    uint16_t rows, columns;
  } size;
  uint64_t timeout_ms, grace_ms; /* timeout 0 is none */
  uint64_t log_limit;
  int log, index, exit_record, control; /* of a detached program, else -1 */
  int input;                            /* WIRE_STDIN_FILE, else -1 */
};

static inline bool exec_has(const struct exec *exec, uint32_t flag) {
  return (exec->flags & flag) != 0;
}

int parse_exec(const struct request *request, struct exec *exec, struct report *report);
void release_exec(struct exec *exec);

#endif
