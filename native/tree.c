/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tree.h"
#include "scoped.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#define MAX_FREEZES 64 /* a bomb at its pid limit is frozen in two or three */

struct process {
  pid_t pid, parent;
  char state; /* as proc(5) names it */
  bool below; /* a descendant of this process */
};

struct processes {
  struct process *list;
  size_t count, room;
};

static void release_processes(struct processes *processes) { free(processes->list); }

pid_t parse_stat(const char *text, char *state) {
  /* The name in parentheses may hold anything, parentheses and newlines too. */
  const char *name_end = strrchr(text, ')');
  pid_t parent;
  if (name_end == NULL || sscanf(name_end + 1, " %c %d", state, &parent) != 2)
    return -1;
  return parent;
}

static int read_process(int proc, pid_t pid, struct process *process) {
  char path[32], text[512];
  snprintf(path, sizeof path, "%d/stat", pid);
  scoped_fd fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return -1;
  ssize_t length = read(fd, text, sizeof text - 1);
  if (length <= 0)
    return -1;
  text[length] = '\0';
  *process = (struct process){.pid = pid};
  process->parent = parse_stat(text, &process->state);
  return process->parent < 0 ? -1 : 0;
}

static int add_process(struct processes *processes, const struct process *process) {
  if (processes->count == processes->room) {
    size_t room = processes->room == 0 ? 256 : processes->room * 2;
    struct process *list = reallocarray(processes->list, room, sizeof *list);
    if (list == NULL)
      return -1;
    processes->list = list;
    processes->room = room;
  }
  processes->list[processes->count++] = *process;
  return 0;
}

static int compare_pids(const void *a, const void *b) {
  const struct process *left = a, *right = b;
  return (left->pid > right->pid) - (left->pid < right->pid);
}

/* Whether a parent is `top` or already known to be below it. */
static bool is_below(const struct processes *processes, pid_t pid, pid_t top) {
  const struct process wanted = {.pid = pid};
  if (pid == top)
    return true;
  const struct process *found =
      bsearch(&wanted, processes->list, processes->count, sizeof wanted, compare_pids);
  return found != NULL && found->below;
}

/* A parent may have the greater pid, as pids wrap: mark until nothing changes. */
static void mark_descendants(struct processes *processes, pid_t top) {
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < processes->count; i++) {
      struct process *process = &processes->list[i];
      if (!process->below && is_below(processes, process->parent, top))
        process->below = changed = true;
    }
  }
}

static int list_processes(int proc, struct processes *processes) {
  scoped_fd copy = openat(proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *directory = copy < 0 ? NULL : fdopendir(copy);
  if (directory == NULL)
    return -1;
  release_fd(&copy);
  const struct dirent *entry;
  int result = 0;
  while (result == 0 && (entry = readdir(directory)) != NULL) {
    struct process process;
    pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
    if (pid > 0 && read_process(proc, pid, &process) == 0)
      result = add_process(processes, &process);
  }
  closedir(directory);
  qsort(processes->list, processes->count, sizeof *processes->list, compare_pids);
  mark_descendants(processes, getpid());
  return result;
}

/* Signal a process unless its pid has passed on to another one meanwhile. */
static void signal_process(int proc, const struct process *process, int signum) {
  scoped_fd pidfd = pidfd_open(process->pid, 0);
  struct process now;
  if (pidfd >= 0 && read_process(proc, process->pid, &now) == 0 && now.parent == process->parent)
    pidfd_send_signal(pidfd, signum, NULL, 0);
}

static bool is_running(const struct process *process) {
  return strchr("TtZX", process->state) == NULL;
}

/* A zombie has ended, even if a tracer keeps it from its parent. */
static bool is_alive(const struct process *process) { return strchr("ZX", process->state) == NULL; }

/* Signal those that match; the number of signals, -1 where memory or files ran out. */
static long signal_some(int signum, bool (*matches)(const struct process *)) {
  __attribute__((cleanup(release_processes))) struct processes processes = {0};
  scoped_fd proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (proc < 0 || list_processes(proc, &processes) < 0)
    return -1;
  long signalled = 0;
  for (size_t i = 0; i < processes.count; i++) {
    const struct process *process = &processes.list[i];
    if (process->below && matches(process)) {
      signal_process(proc, process, signum);
      signalled++;
    }
  }
  return signalled;
}

bool signal_descendants(int signum) { return signal_some(signum, is_alive) != 0; }

void freeze_descendants(void) {
  for (int i = 0; i < MAX_FREEZES; i++)
    if (signal_some(SIGSTOP, is_running) == 0)
      return;
}
