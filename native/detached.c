/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One loop that waits for everything and for nobody: a client that does not read, a program that
 * does not read its standard input, a background process that holds the output open stop nothing
 * else.
 */
#define _GNU_SOURCE
#include "detached.h"
#include "inbox.h"
#include "output_log.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_CLIENTS 256
#define CHUNK 65536
#define CHUNKS_AT_ONCE                                                                             \
  17 /* more than the greatest pipe holds, so all that an ended program wrote */
#define INBOX (sizeof(struct wire_message_header) + WIRE_MAX_MESSAGE)
#define END_OF_FILE '\004' /* termios(3): what a terminal reads as the end */

struct client {
  int sock;
  struct inbox inbox;
  size_t written; /* of the data in its first message */
};

struct session {
  struct running *running;
  struct output_log log;
  int control;
  struct client clients[MAX_CLIENTS];
  size_t client_count;
};

/* -- output ----------------------------------------------------------------------------------- */

/* Take what a stream has now; close it at its end. */
static void drain(struct session *session, int *stream, uint32_t name) {
  char chunk[CHUNK];
  for (int i = 0; i < CHUNKS_AT_ONCE && *stream >= 0; i++) {
    ssize_t got = read(*stream, chunk, sizeof chunk);
    if (got > 0) {
      output_log_append(&session->log, name, chunk, (size_t)got);
      continue;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
      return;
    close(*stream); /* its end; for a terminal that hung up, EIO */
    *stream = -1;
  }
}

static void drain_all(struct session *session) {
  drain(session, &session->running->program.output, STREAM_OUTPUT);
  drain(session, &session->running->program.errors, STREAM_ERRORS);
  drain(session, &session->running->program.terminal, STREAM_OUTPUT);
}

static bool has_output(const struct session *session) {
  const struct program *program = &session->running->program;
  return program->output >= 0 || program->errors >= 0 || program->terminal >= 0;
}

/* -- clients ---------------------------------------------------------------------------------- */

static void remove_client(struct session *session, size_t which) {
  close(session->clients[which].sock);
  free(session->clients[which].inbox.bytes);
  memmove(&session->clients[which], &session->clients[which + 1],
          (--session->client_count - which) * sizeof *session->clients);
}

static void accept_client(struct session *session) {
  struct client client = {.sock = accept4(session->control, NULL, NULL, SOCK_CLOEXEC)};
  if (client.sock < 0)
    return;
  client.inbox.room = INBOX;
  client.inbox.bytes = malloc(INBOX);
  session->clients[session->client_count++] = client;
  int32_t pid = session->running->program.pid;
  if (client.inbox.bytes == NULL ||
      send_message(client.sock, WIRE_STARTED, &pid, sizeof pid, NULL, 0) < 0)
    remove_client(session, session->client_count - 1);
}

static void answer(const struct client *client, int error) {
  struct report report;
  if (error == 0) {
    send_message(client->sock, WIRE_OK, NULL, 0, NULL, 0);
    return;
  }
  fail_with(&report, error, "stdin", "");
  send_report(client->sock, &report);
}

/* -- standard input --------------------------------------------------------------------------- */

static int input_of(const struct session *session) {
  const struct program *program = &session->running->program;
  return program->terminal >= 0 ? program->terminal : program->input;
}

/* Write what is left of a client's data; 1 when all is written, 0 when there is no room now. */
static int write_input(const struct session *session, struct client *client, const uint8_t *data,
                       size_t length) {
  while (client->written < length) {
    ssize_t written = write(input_of(session), data + client->written, length - client->written);
    if (written < 0)
      return errno == EAGAIN ? 0 : -1;
    client->written += (size_t)written;
  }
  client->written = 0;
  return 1;
}

static int close_input(struct session *session) {
  struct program *program = &session->running->program;
  const char end = END_OF_FILE;
  if (program->terminal >= 0)
    return write(program->terminal, &end, 1) == 1 ? 0 : errno;
  if (program->input >= 0)
    close(program->input);
  program->input = -1;
  return 0;
}

/* Serve a client's first message; false while it must wait for the program to read. */
static bool serve_message(struct session *session, struct client *client) {
  uint32_t type;
  const uint8_t *body;
  size_t length;
  if (!inbox_peek(&client->inbox, &type, &body, &length))
    return false;
  if (type == WIRE_STDIN_DATA) {
    int done = write_input(session, client, body, length);
    if (done == 0)
      return false;
    answer(client, done > 0 ? 0 : errno);
  } else if (type == WIRE_STDIN_CLOSE) {
    answer(client, close_input(session));
  } else {
    running_obey(session->running, type, body, length);
  }
  inbox_drop(&client->inbox);
  return true;
}

static bool waits_for_input(const struct client *client) {
  uint32_t type;
  const uint8_t *body;
  size_t length;
  return inbox_peek(&client->inbox, &type, &body, &length) && type == WIRE_STDIN_DATA;
}

/* Whether an earlier client's data is being written: the pieces of two must not mix. */
static bool input_is_taken(const struct session *session, size_t by_other_than) {
  for (size_t i = 0; i < session->client_count; i++)
    if (i != by_other_than && session->clients[i].written > 0)
      return true;
  return false;
}

static void serve_client(struct session *session, size_t which) {
  struct client *client = &session->clients[which];
  while (!(waits_for_input(client) && input_is_taken(session, which)) &&
         serve_message(session, client))
    ;
}

/* -- the loop --------------------------------------------------------------------------------- */

/* Where each descriptor is in what poll(2) gets. */
enum { CHILDREN, CONTROL, OUTPUT, ERRORS, TERMINAL, INPUT, CLIENTS };

static void want(const struct session *session, struct pollfd wanted[static CLIENTS]) {
  const struct program *program = &session->running->program;
  bool waiting = false;
  for (size_t i = 0; i < session->client_count; i++) {
    const struct client *client = &session->clients[i];
    bool waits = waits_for_input(client);
    short events = client->inbox.have < client->inbox.room ? POLLIN : 0;
    wanted[CLIENTS + i] = (struct pollfd){.fd = client->sock, .events = events};
    waiting = waiting || waits;
  }
  bool full = session->client_count == MAX_CLIENTS;
  wanted[CHILDREN] = (struct pollfd){.fd = session->running->children, .events = POLLIN};
  wanted[CONTROL] = (struct pollfd){.fd = full ? -1 : session->control, .events = POLLIN};
  wanted[OUTPUT] = (struct pollfd){.fd = program->output, .events = POLLIN};
  wanted[ERRORS] = (struct pollfd){.fd = program->errors, .events = POLLIN};
  wanted[TERMINAL] = (struct pollfd){.fd = program->terminal, .events = POLLIN};
  wanted[INPUT] = (struct pollfd){.fd = waiting ? input_of(session) : -1, .events = POLLOUT};
}

static void read_clients(struct session *session, const struct pollfd *wanted, size_t count) {
  for (size_t i = count; i-- > 0;)
    if (wanted[CLIENTS + i].revents &&
        !inbox_fill(&session->clients[i].inbox, session->clients[i].sock))
      remove_client(session, i);
}

static void turn(struct session *session) {
  struct pollfd wanted[CLIENTS + MAX_CLIENTS];
  size_t clients = session->client_count;
  want(session, wanted);
  if (poll(wanted, CLIENTS + clients, running_patience(session->running)) < 0) {
    running_kill(session->running, WIRE_KILLED); /* no signal interrupts it: this cannot go on */
    return;
  }
  if (wanted[OUTPUT].revents || wanted[ERRORS].revents || wanted[TERMINAL].revents)
    drain_all(session);
  read_clients(session, wanted, clients);
  for (size_t i = 0; i < session->client_count; i++)
    serve_client(session, i);
  if (wanted[CONTROL].revents)
    accept_client(session);
  if (wanted[CHILDREN].revents)
    running_reap(session->running);
  running_tick(session->running);
}

/* The exit record is there before anybody is told; after it nobody is served. */
static void announce_end(struct session *session, int exit_record) {
  struct wire_exited *exited = &session->running->exited;
  drain_all(session);
  exited->log_dropped = session->log.dropped;
  ssize_t written = pwrite(exit_record, exited, sizeof *exited, 0);
  (void)written; /* on a full disk it is short, and read as none: the program is lost */
  close(session->control);
  session->control = -1;
  for (size_t i = 0; i < session->client_count; i++)
    send_message(session->clients[i].sock, WIRE_EXITED, exited, sizeof *exited, NULL, 0);
  while (session->client_count > 0)
    remove_client(session, 0);
  close_input(session);
}

static void unblock(int fd) {
  if (fd >= 0)
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

void watch_detached(struct running *running, const struct exec *exec, int connection) {
  struct session session = {
      .running = running,
      .log = {.log = exec->log, .index = exec->index, .limit = exec->log_limit},
      .control = exec->control,
  };
  int32_t pid = running->program.pid;
  send_message(connection, WIRE_STARTED, &pid, sizeof pid, NULL, 0);
  shutdown(connection, SHUT_RDWR);
  unblock(running->program.input);
  unblock(running->program.output);
  unblock(running->program.errors);
  unblock(running->program.terminal);
  while (!running->over)
    turn(&session);
  announce_end(&session, exec->exit_record);
  while (!exec_has(exec, WIRE_MAIN) && has_output(&session))
    turn(&session);
}
