/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "exec_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DETACHED_FDS 4

/* How many items of each list there are, so that the lists are allocated once. */
static int count_items(const struct request *request, size_t *arguments, size_t *variables) {
  size_t position = 0;
  struct item item;
  int more;
  *arguments = *variables = 0;
  while ((more = next_item(request, &position, &item)) > 0) {
    *arguments += item.tag == WIRE_EXEC_ARGV;
    *variables += item.tag == WIRE_EXEC_ENV;
  }
  return more;
}

static int take_item(const struct item *item, struct exec *exec, char ***argument,
                     char ***variable) {
  switch (item->tag) {
  case WIRE_EXEC_ARGV:
    return item_text(item, (*argument)++);
  case WIRE_EXEC_ENV:
    return item_text(item, (*variable)++);
  case WIRE_EXEC_CWD:
    return item_text(item, &exec->cwd);
  case WIRE_EXEC_USER:
    return item_text(item, &exec->user);
  case WIRE_EXEC_FLAGS:
    return item_number(item, &exec->flags, sizeof exec->flags);
  case WIRE_EXEC_SIZE:
    return item_number(item, &exec->size, sizeof exec->size);
  case WIRE_EXEC_TIMEOUT:
    return item_number(item, &exec->timeout_ms, sizeof exec->timeout_ms);
  case WIRE_EXEC_GRACE:
    return item_number(item, &exec->grace_ms, sizeof exec->grace_ms);
  case WIRE_EXEC_LOG_LIMIT:
    return item_number(item, &exec->log_limit, sizeof exec->log_limit);
  default:
    errno = EPROTO;
    return -1;
  }
}

static int take_items(const struct request *request, struct exec *exec) {
  size_t arguments, variables;
  if (count_items(request, &arguments, &variables) < 0) {
    errno = EPROTO;
    return -1;
  }
  exec->argv = calloc(arguments + 1, sizeof *exec->argv);
  exec->environment = calloc(variables + 1, sizeof *exec->environment);
  if (exec->argv == NULL || exec->environment == NULL)
    return -1;
  char **argument = exec->argv, **variable = exec->environment;
  size_t position = 0;
  struct item item;
  while (next_item(request, &position, &item) > 0)
    if (take_item(&item, exec, &argument, &variable) < 0)
      return -1;
  if (arguments == 0 || exec->cwd == NULL || exec->user == NULL) {
    errno = EPROTO;
    return -1;
  }
  return 0;
}

static int assign_fds(const struct request *request, struct exec *exec) {
  bool detached = exec_has(exec, WIRE_DETACHED), input = exec_has(exec, WIRE_STDIN_FILE);
  exec->log = exec->index = exec->exit_record = exec->control = exec->input = -1;
  if (request->fd_count != (detached ? DETACHED_FDS : 0) + (input ? 1U : 0U)) {
    errno = EBADF;
    return -1;
  }
  if (input)
    exec->input = request->fds[request->fd_count - 1];
  if (detached) {
    exec->log = request->fds[0];
    exec->index = request->fds[1];
    exec->exit_record = request->fds[2];
    exec->control = request->fds[3];
  }
  return 0;
}

int parse_exec(const struct request *request, struct exec *exec, struct report *report) {
  memset(exec, 0, sizeof *exec);
  if (take_items(request, exec) < 0)
    return fail(report, "request", "an exec item");
  if (assign_fds(request, exec) < 0)
    return fail(report, "request", "descriptors");
  return 0;
}

static void release_list(char **list) {
  for (char **text = list; text != NULL && *text != NULL; text++)
    free(*text);
  free(list);
}

void release_exec(struct exec *exec) {
  release_list(exec->argv);
  release_list(exec->environment);
  free(exec->cwd);
  free(exec->user);
  memset(exec, 0, sizeof *exec);
}
