/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "supervisor.h"
#include "detached.h"
#include "inbox.h"
#include "init.h"
#include "running.h"
#include "scoped.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define CONTROL_MESSAGE 64 /* more than any message of an attached client has */

static int tell_init(const struct supervision *supervision, int kind, int64_t value) {
  struct note note = {.kind = kind, .value = value};
  return write(supervision->notes, &note, sizeof note) == sizeof note ? 0 : -1;
}

/* -- WIRE_DEADLINE ---------------------------------------------------------------------------- */

static int move_deadline(const struct supervision *supervision, const struct request *request,
                         struct report *report) {
  size_t position = 0;
  struct item item;
  int64_t deadline;
  if (next_item(request, &position, &item) != 1 || item.tag != WIRE_DEADLINE_AT ||
      item_number(&item, &deadline, sizeof deadline) < 0)
    return fail_with(report, EPROTO, "request", "a deadline");
  if (tell_init(supervision, NOTE_DEADLINE, deadline) < 0)
    return fail(report, "request", "init");
  send_message(supervision->connection, WIRE_OK, NULL, 0, NULL, 0);
  return 0;
}

/* -- WIRE_EXEC, attached ---------------------------------------------------------------------- */

/* The client gets our ends of the streams; from then on they are the client's alone. */
static int hand_over_streams(int connection, struct program *program) {
  int *ends[] = {&program->input, &program->output, &program->errors, &program->terminal};
  int fds[sizeof ends / sizeof *ends];
  size_t count = 0;
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
    if (*ends[i] >= 0)
      fds[count++] = *ends[i];
  int32_t pid = program->pid;
  int result = send_message(connection, WIRE_STARTED, &pid, sizeof pid, fds, count);
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
    if (*ends[i] >= 0)
      close(*ends[i]);
    *ends[i] = -1;
  }
  return result;
}

static void obey_all(struct running *running, struct inbox *inbox) {
  uint32_t type;
  const uint8_t *body;
  size_t length;
  while (inbox_peek(inbox, &type, &body, &length)) {
    running_obey(running, type, body, length);
    inbox_drop(inbox);
  }
}

static void watch(struct running *running, int connection) {
  uint8_t room[CONTROL_MESSAGE];
  struct inbox inbox = {.bytes = room, .room = sizeof room};
  struct pollfd wanted[] = {
      {.fd = running->children, .events = POLLIN},
      {.fd = connection, .events = POLLIN},
  };
  while (!running->over) {
    if (poll(wanted, 2, running_patience(running)) < 0)
      running_kill(running, WIRE_KILLED); /* no signal interrupts it: this cannot go on */
    if (wanted[0].revents)
      running_reap(running);
    if (!running->over && wanted[1].revents) {
      if (inbox_fill(&inbox, connection))
        obey_all(running, &inbox);
      else
        running_kill(running, WIRE_KILLED); /* the client has gone */
    }
    running_tick(running);
  }
  send_message(connection, WIRE_EXITED, &running->exited, sizeof running->exited, NULL, 0);
}

/* -- WIRE_EXEC -------------------------------------------------------------------------------- */

static int run_program(const struct supervision *supervision, const struct exec *exec,
                       struct report *report) {
  struct running running = {0};
  if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
    return fail(report, "subreaper", "");
  if (start_program(exec, &running.program, report) < 0)
    return -1;
  if (exec_has(exec, WIRE_MAIN) && tell_init(supervision, NOTE_MAIN_STARTED, getpid()) < 0)
    return fail(report, "request", "init");
  running_begin(&running, exec, supervision->children);
  if (exec_has(exec, WIRE_DETACHED)) {
    watch_detached(&running, exec, supervision->connection);
  } else {
    if (hand_over_streams(supervision->connection, &running.program) < 0)
      running_kill(&running, WIRE_KILLED);
    watch(&running, supervision->connection);
  }
  if (exec_has(exec, WIRE_MAIN) &&
      tell_init(supervision, NOTE_MAIN_EXITED, running.exited.status) < 0)
    return fail(report, "request", "init");
  return 0;
}

static int serve_exec(const struct supervision *supervision, const struct request *request,
                      struct report *report) {
  struct exec exec;
  int result = parse_exec(request, &exec, report);
  if (result == 0)
    result = run_program(supervision, &exec, report);
  release_exec(&exec);
  return result;
}

_Noreturn void supervise(const struct supervision *supervision) {
  struct report report = {0};
  struct request request;
  int result;
  if (receive_request(supervision->connection, &request) < 0)
    result = fail(&report, "request", "");
  else if (request.kind == WIRE_DEADLINE)
    result = move_deadline(supervision, &request, &report);
  else if (request.kind == WIRE_EXEC)
    result = serve_exec(supervision, &request, &report);
  else
    result = fail_with(&report, EPROTO, "request", "neither an exec nor a deadline");
  if (result < 0)
    send_report(supervision->connection, &report);
  release_request(&request);
  _exit(result < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
}
