/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PID 1 never waits for anybody: each connection is served by a supervisor of its own
 * (supervisor.c), and what concerns init itself comes back through a pipe. All signals are
 * blocked, here and in supervisors; a signalfd tells of children.
 */
#define _GNU_SOURCE
#include "init.h"
#include "messages.h"
#include "scoped.h"
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LISTENER = 3, STATUS = 4, FIRST_FREE = 5 };

struct init {
  int children; /* signalfd */
  int timer;    /* timerfd */
  int notes[2]; /* pipe: the reading end, the supervisors' end */
  pid_t *supervisors;
  size_t supervisor_count, supervisor_room;
  pid_t main_supervisor;
};

/* End, and with it the sandbox: the kernel kills what is left. */
static _Noreturn void end(const char *why) {
  if (pwrite(STATUS, why, strlen(why), 0) < 0)
    _exit(EXIT_FAILURE);
  _exit(EXIT_SUCCESS);
}

static _Noreturn void end_with_main(int status) {
  char why[32];
  snprintf(why, sizeof why, "main %d", status);
  end(why);
}

static int set_deadline(const struct init *init, int64_t deadline) {
  struct itimerspec at = {
      .it_value = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000}};
  return timerfd_settime(init->timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void take_notes(struct init *init) {
  struct note note;
  while (read(init->notes[0], &note, sizeof note) == sizeof note) {
    switch (note.kind) {
    case NOTE_DEADLINE:
      set_deadline(init, note.value);
      break;
    case NOTE_MAIN_STARTED:
      init->main_supervisor = (pid_t)note.value;
      break;
    case NOTE_MAIN_EXITED:
      end_with_main((int)note.value);
    }
  }
}

/* Before the fork: a supervisor that is not known could not be looked after. */
static int make_room_for_supervisor(struct init *init) {
  if (init->supervisor_count < init->supervisor_room)
    return 0;
  size_t room = init->supervisor_room == 0 ? 64 : init->supervisor_room * 2;
  pid_t *supervisors = reallocarray(init->supervisors, room, sizeof *supervisors);
  if (supervisors == NULL)
    return -1;
  init->supervisors = supervisors;
  init->supervisor_room = room;
  return 0;
}

/* Where a supervisor is in the list; its end if it is none, but an orphan that came to init. */
static size_t find_supervisor(const struct init *init, pid_t pid) {
  size_t i = 0;
  while (i < init->supervisor_count && init->supervisors[i] != pid)
    i++;
  return i;
}

static void supervisor_ended(struct init *init, size_t which) {
  pid_t pid = init->supervisors[which];
  init->supervisors[which] = init->supervisors[--init->supervisor_count];
  if (pid == init->main_supervisor) {
    take_notes(init);
    end_with_main(SIGKILL); /* it was killed before it could say how the program ended */
  }
}

/* Root of the sandbox may stop a supervisor, and with it the timeout it keeps: it shall not. */
static void reap(struct init *init) {
  struct signalfd_siginfo told[16];
  while (read(init->children, told, sizeof told) > 0)
    ;
  pid_t pid;
  int status;
  while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
    size_t which = find_supervisor(init, pid);
    if (which == init->supervisor_count)
      continue;
    if (WIFSTOPPED(status))
      kill(pid, SIGKILL);
    else
      supervisor_ended(init, which);
  }
}

static _Noreturn void become_supervisor(const struct init *init, int connection) {
  close(LISTENER);
  close(STATUS);
  close(init->timer);
  close(init->notes[0]);
  struct supervision supervision = {
      .connection = connection,
      .notes = init->notes[1],
      .children = init->children,
  };
  supervise(&supervision);
}

static void accept_connection(struct init *init) {
  scoped_fd connection = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC);
  if (connection < 0)
    return; /* the client has gone again, or there is no memory: it will come again */
  pid_t pid = make_room_for_supervisor(init) < 0 ? -1 : fork();
  if (pid == 0)
    become_supervisor(init, release_fd(&connection));
  if (pid > 0)
    init->supervisors[init->supervisor_count++] = pid;
  if (pid < 0) {
    struct report report;
    fail(&report, "fork", "");
    send_report(connection, &report); /* it fits into the empty buffer of a new socket */
  }
}

/* Leave nothing open but the listener and the status file, at fixed places. */
static int arrange_descriptors(const struct init_options *options) {
  scoped_fd listener = fcntl(options->listener, F_DUPFD_CLOEXEC, 64);
  scoped_fd status = fcntl(options->status, F_DUPFD_CLOEXEC, 64);
  if (listener < 0 || status < 0 || dup3(listener, LISTENER, O_CLOEXEC) < 0 ||
      dup3(status, STATUS, O_CLOEXEC) < 0)
    return -1;
  listener = status = -1;
  if (close_range(FIRST_FREE, ~0U, 0) < 0)
    return -1;
  return fcntl(LISTENER, F_SETFL, O_NONBLOCK);
}

static int prepare(struct init *init, const struct init_options *options) {
  sigset_t all, child;
  sigfillset(&all);
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  if (arrange_descriptors(options) < 0 || sigprocmask(SIG_BLOCK, &all, NULL) < 0)
    return -1;
  init->children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  init->timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
  if (init->children < 0 || init->timer < 0 || pipe2(init->notes, O_CLOEXEC) < 0)
    return -1;
  if (fcntl(init->notes[0], F_SETFL, O_NONBLOCK) < 0)
    return -1;
  return set_deadline(init, options->deadline);
}

_Noreturn void serve(const struct init_options *options) {
  struct init init = {0};
  if (prepare(&init, options) < 0)
    _exit(EXIT_FAILURE);
  struct pollfd wanted[] = {
      {.fd = init.timer, .events = POLLIN},
      {.fd = init.notes[0], .events = POLLIN},
      {.fd = init.children, .events = POLLIN},
      {.fd = LISTENER, .events = POLLIN},
  };
  for (;;) {
    if (poll(wanted, sizeof wanted / sizeof *wanted, -1) < 0)
      _exit(EXIT_FAILURE); /* no signal interrupts it: init can do its work no more */
    if (wanted[0].revents)
      end("expired");
    if (wanted[1].revents)
      take_notes(&init);
    if (wanted[2].revents)
      reap(&init);
    if (wanted[3].revents)
      accept_connection(&init);
  }
}
