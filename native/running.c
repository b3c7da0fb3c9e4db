/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "running.h"
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KILL_PAUSE_MS 5 /* between two looks at a tree that is being killed */
#define KILL_LIMIT_MS 10000

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t after_ms(uint64_t delay) {
  return now_ms() + (int64_t)(delay < INT64_MAX / 2 ? delay : INT64_MAX / 2);
}

void running_begin(struct running *running, const struct exec *exec, int children) {
  running->children = children;
  running->grace_ms = exec->grace_ms;
  running->next_ms = exec->timeout_ms > 0 ? after_ms(exec->timeout_ms) : 0;
}

int running_patience(const struct running *running) {
  if (running->next_ms == 0)
    return -1;
  int64_t left = running->next_ms - now_ms();
  return left < 0 ? 0 : left < INT_MAX ? (int)left + 1 : INT_MAX;
}

void running_tick(struct running *running) {
  if (running->over || running->next_ms == 0 || now_ms() < running->next_ms)
    return;
  if (running->terminating)
    running_kill(running, 0);
  else
    running_terminate(running, WIRE_TIMED_OUT);
}

/*
 * What the program and the children it waited for have read and written. Allowed to its user, by
 * the filesystem uid, while it is a zombie (PTRACE_MODE_READ_FSCREDS in ptrace(2)).
 */
static void read_io(struct running *running) {
  char text[512];
  running->exited.bytes_read = running->exited.bytes_written = WIRE_UNKNOWN;
  setfsgid(running->program.identity.gid);
  setfsuid(running->program.identity.uid);
  ssize_t length = pread(running->program.io_counters, text, sizeof text - 1, 0);
  setfsuid(0);
  setfsgid(0);
  if (length <= 0)
    return;
  text[length] = '\0';
  unsigned long long in, out;
  if (sscanf(text, "rchar: %llu wchar: %llu", &in, &out) == 2) {
    running->exited.bytes_read = in;
    running->exited.bytes_written = out;
  }
}

static uint64_t microseconds(struct timeval time) {
  return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static void record_end(struct running *running) {
  struct rusage usage = {0};
  read_io(running);
  wait4(running->program.pid, &running->exited.status, 0, &usage);
  running->exited.cpu_us = microseconds(usage.ru_utime) + microseconds(usage.ru_stime);
  running->exited.peak_memory = (uint64_t)usage.ru_maxrss * 1024;
  running->over = true;
}

static void reap_all(struct running *running) {
  siginfo_t ended = {.si_pid = 0};
  while (waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid != 0) {
    if (ended.si_pid == running->program.pid && !running->over)
      record_end(running);
    else
      waitpid(ended.si_pid, NULL, 0);
    ended.si_pid = 0;
  }
}

static void drain_signals(const struct running *running) {
  struct signalfd_siginfo told[16];
  while (read(running->children, told, sizeof told) > 0)
    ;
}

void running_reap(struct running *running) {
  drain_signals(running);
  reap_all(running);
  if (running->over && running->terminating)
    running_kill(running, 0);
}

void running_terminate(struct running *running, uint32_t why) {
  if (running->terminating || running->over)
    return;
  running->terminating = true;
  running->exited.flags |= why;
  signal_descendants(SIGTERM);
  running->next_ms = after_ms(running->grace_ms);
}

/* It has been killed, but its end cannot be had: a tracer inside keeps it. */
static void record_unseen_end(struct running *running) {
  read_io(running);
  running->exited.status = SIGKILL;
  running->over = true;
}

void running_kill(struct running *running, uint32_t why) {
  int64_t give_up_ms = after_ms(KILL_LIMIT_MS);
  if (!running->over)
    running->exited.flags |= why;
  running->terminating = false;
  running->next_ms = 0;
  freeze_descendants();
  while (signal_descendants(SIGKILL) && now_ms() < give_up_ms) {
    struct pollfd children = {.fd = running->children, .events = POLLIN};
    poll(&children, 1, KILL_PAUSE_MS);
    drain_signals(running);
    reap_all(running);
  }
  reap_all(running);
  if (!running->over)
    record_unseen_end(running);
}

static void send_signal(const struct running *running, const void *body, size_t length) {
  int32_t signum;
  if (length != sizeof signum || running->over)
    return;
  memcpy(&signum, body, sizeof signum);
  kill(-running->program.pid, signum); /* it may have ended, or changed its user's mind */
}

static void resize(const struct running *running, const void *body, size_t length) {
  uint16_t size[2];
  if (length != sizeof size || running->program.terminal < 0)
    return;
  memcpy(size, body, sizeof size);
  struct winsize window = {.ws_row = size[0], .ws_col = size[1]};
  ioctl(running->program.terminal, TIOCSWINSZ, &window);
}

void running_obey(struct running *running, uint32_t type, const void *body, size_t length) {
  if (type == WIRE_SIGNAL)
    send_signal(running, body, length);
  else if (type == WIRE_KILL)
    running_terminate(running, WIRE_KILLED);
  else if (type == WIRE_RESIZE)
    resize(running, body, length);
}
