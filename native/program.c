/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "program.h"
#include "messages.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define OOM_SCORE "500" /* of +-1000: proc(5) */
#define TTY_GID 5       /* as devpts is mounted in rootfs.c */

#define INIT 1 /* whose children are those whose parents have died */
#define START_PAUSE_MS 100
#define START_LIMIT_MS 10000

/* The program's ends of its streams. */
struct ends {
  int input, output, errors;
};

static void close_ends(const struct ends *ends) {
  if (ends->input >= 0)
    close(ends->input);
  if (ends->output >= 0)
    close(ends->output);
  if (ends->errors >= 0 && ends->errors != ends->output)
    close(ends->errors);
}

#define scoped_ends __attribute__((cleanup(close_ends))) struct ends

static int open_pipe(int *reading, int *writing) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) < 0)
    return -1;
  *reading = ends[0];
  *writing = ends[1];
  return 0;
}

/* Pipes that belong to the program's user, who may then open /dev/stdout again. */
static int open_pipes(const struct exec *exec, struct program *program, struct ends *ends,
                      struct report *report) {
  setfsgid(program->identity.gid);
  setfsuid(program->identity.uid);
  int result = open_pipe(&program->output, &ends->output);
  if (result == 0)
    result = open_pipe(&program->errors, &ends->errors);
  if (result == 0 && exec_has(exec, WIRE_STDIN))
    result = open_pipe(&ends->input, &program->input);
  if (result < 0)
    fail(report, "pipe", "");
  setfsuid(0);
  setfsgid(0);
  if (result == 0 && !exec_has(exec, WIRE_STDIN)) {
    ends->input = exec_has(exec, WIRE_STDIN_FILE) ? fcntl(exec->input, F_DUPFD_CLOEXEC, 0)
                                                  : open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (ends->input < 0)
      return fail(report, "pipe", "standard input");
  }
  return result;
}

static int open_terminal(const struct exec *exec, struct program *program, struct ends *ends,
                         struct report *report) {
  int unlocked = 0;
  struct winsize size = {.ws_row = exec->size.rows, .ws_col = exec->size.columns};
  program->terminal = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (program->terminal < 0 || ioctl(program->terminal, TIOCSPTLCK, &unlocked) < 0)
    return fail(report, "terminal", "/dev/pts/ptmx");
  int line = ioctl(program->terminal, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (line < 0)
    return fail(report, "terminal", "its line");
  *ends = (struct ends){line, line, line};
  if (fchown(line, program->identity.uid, TTY_GID) < 0 || ioctl(line, TIOCSWINSZ, &size) < 0)
    return fail(report, "terminal", "its owner");
  return 0;
}

/* -- in the child ----------------------------------------------------------------------------- */

#define SUPERVISOR 3 /* where the child's end of the channel is */

static int take_streams(const struct exec *exec, const struct ends *ends, int supervisor) {
  if (setsid() < 0 || dup2(ends->input, 0) < 0 || dup2(ends->output, 1) < 0 ||
      dup2(ends->errors, 2) < 0)
    return -1;
  if (exec_has(exec, WIRE_TERMINAL) && ioctl(0, TIOCSCTTY, 0) < 0)
    return -1;
  if (supervisor != SUPERVISOR && dup3(supervisor, SUPERVISOR, O_CLOEXEC) < 0)
    return -1;
  return close_range(SUPERVISOR + 1, ~0U, 0);
}

/* The OOM killer is to take a program before init, and before the host's own processes. */
static int volunteer_for_oom(void) {
  scoped_fd fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  return fd < 0 || write(fd, OOM_SCORE, strlen(OOM_SCORE)) < 0 ? -1 : 0;
}

/*
 * Hand over what will tell how much this process has read and written: proc(5). It is complete
 * when the process is a zombie, and nobody can open it any more.
 */
static int give_io_counters(void) {
  scoped_fd fd = open("/proc/self/io", O_RDONLY | O_CLOEXEC);
  return fd < 0 ? -1 : send_message(SUPERVISOR, WIRE_OK, NULL, 0, &fd, 1);
}

/* uid 0 keeps the sandbox's short list of capabilities, others lose all: capabilities(7). */
static int become_user(const struct identity *identity) {
  if (setgroups(identity->group_count, identity->groups) < 0)
    return -1;
  if (setresgid(identity->gid, identity->gid, identity->gid) < 0)
    return -1;
  return setresuid(identity->uid, identity->uid, identity->uid);
}

static int complete_environment(const struct exec *exec, const struct identity *identity) {
  const char *name = identity->name;
  environ = exec->environment;
  if (setenv("HOME", identity->home, 0) < 0 || setenv("PATH", DEFAULT_PATH, 0) < 0)
    return -1;
  if (name[0] != '\0' && (setenv("USER", name, 0) < 0 || setenv("LOGNAME", name, 0) < 0))
    return -1;
  return 0;
}

static int prepare(const struct exec *exec, const struct identity *identity,
                   struct report *report) {
  /* The files in /proc belong to the host's root while a process is not dumpable; by now this one
   * holds nothing that is worth tracing it for. */
  if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0 || volunteer_for_oom() < 0)
    return fail(report, "oom score", OOM_SCORE);
  if (give_io_counters() < 0)
    return fail(report, "io counters", "");
  if (complete_environment(exec, identity) < 0 || become_user(identity) < 0)
    return fail(report, "identity", exec->user);
  if (chdir(exec->cwd) < 0)
    return fail(report, "workdir", exec->cwd);
  /* After the change of user, which clears it: without its supervisor it would have no timeout. */
  if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() == INIT)
    return fail(report, "fork", "its supervisor");
  return 0;
}

/* Whether a name without a slash is a file somewhere on PATH, executable or not. */
static bool is_on_path(const char *name) {
  scoped_memory char *path = strdup(getenv("PATH"));
  char *position = NULL;
  for (char *directory = path == NULL ? NULL : strtok_r(path, ":", &position); directory != NULL;
       directory = strtok_r(NULL, ":", &position)) {
    char file[PATH_MAX];
    int length = snprintf(file, sizeof file, "%s/%s", directory, name);
    if (length < (int)sizeof file && access(file, F_OK) == 0)
      return true;
  }
  return false;
}

/* 127 for what is not there, 126 for what cannot be executed: exec(3) calls a directory that the
 * user may not search a refusal, a shell does not. */
static int exit_code_for(const char *name, int error) {
  if (error == ENOENT || error == ENOTDIR)
    return 127;
  return error == EACCES && strchr(name, '/') == NULL && !is_on_path(name) ? 127 : 126;
}

static _Noreturn void run(const struct exec *exec, const struct identity *identity,
                          const struct ends *ends, int supervisor) {
  struct report report = {0};
  sigset_t none;
  if (take_streams(exec, ends, supervisor) < 0) {
    fail(&report, "streams", "");
    send_report(supervisor, &report);
    _exit(EXIT_FAILURE);
  }
  if (prepare(exec, identity, &report) < 0) {
    send_report(SUPERVISOR, &report);
    _exit(EXIT_FAILURE);
  }
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  execvp(exec->argv[0], exec->argv);
  int error = errno;
  dprintf(STDERR_FILENO, "hutch: %s: %s\n", exec->argv[0], strerror(error));
  _exit(exit_code_for(exec->argv[0], error));
}

/* -- in the supervisor ------------------------------------------------------------------------ */

/*
 * Wait for the child's next words. As soon as it has its user's id, others of that user can stop
 * it: it is told to go on, and ended when that does not help.
 */
static int await_words(int child, const struct program *program, struct report *report) {
  struct pollfd words = {.fd = child, .events = POLLIN};
  for (int waited_ms = 0; waited_ms < START_LIMIT_MS; waited_ms += START_PAUSE_MS) {
    int ready = poll(&words, 1, START_PAUSE_MS);
    if (ready > 0)
      return 0;
    if (ready < 0)
      return fail(report, "fork", "");
    kill(program->pid, SIGCONT);
  }
  kill(program->pid, SIGKILL);
  return fail_with(report, ETIMEDOUT, "fork", "something inside keeps it from starting");
}

/* What a child may say; root of the sandbox can forge it, so texts end where they must. */
struct words {
  struct wire_message_header header;
  struct wire_error error;
  char subject[sizeof((struct report *)NULL)->subject];
};

static void close_all_but_one(const int *fds, size_t count) {
  for (size_t i = 1; i < count; i++)
    close(fds[i]);
}

/* The child's words until its end of the channel closes: it is executed, or has said why not. */
static int await_start(int child, struct program *program, struct report *report) {
  struct words words;
  int fds[WIRE_MAX_FDS];
  for (;;) {
    size_t count;
    if (await_words(child, program, report) < 0)
      return -1;
    memset(&words, 0, sizeof words);
    ssize_t got = receive_with_fds(child, &words, sizeof words, fds, &count);
    if (got <= 0)
      return got < 0 ? fail(report, "fork", "") : 0;
    close_all_but_one(fds, count);
    if (count > 0) {
      scoped_close(&program->io_counters);
      program->io_counters = fds[0];
    }
    if (words.header.type == WIRE_ERROR) {
      words.error.step[sizeof words.error.step - 1] = '\0';
      words.subject[sizeof words.subject - 1] = '\0';
      return fail_with(report, words.error.error, words.error.step, words.subject);
    }
  }
}

static int fork_program(const struct exec *exec, struct program *program, const struct ends *ends,
                        struct report *report) {
  int channel[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0)
    return fail(report, "pipe", "");
  scoped_fd child = channel[0];
  program->pid = fork();
  if (program->pid == 0)
    run(exec, &program->identity, ends, channel[1]);
  close(channel[1]);
  if (program->pid < 0)
    return fail(report, "fork", "");
  return await_start(child, program, report);
}

int start_program(const struct exec *exec, struct program *program, struct report *report) {
  scoped_ends ends = {-1, -1, -1};
  program->pid = program->input = program->output = program->errors = program->terminal = -1;
  program->io_counters = -1;
  if (look_up_identity(exec->user, &program->identity, report) < 0)
    return -1;
  int opened = exec_has(exec, WIRE_TERMINAL) ? open_terminal(exec, program, &ends, report)
                                             : open_pipes(exec, program, &ends, report);
  if (opened < 0)
    return -1;
  return fork_program(exec, program, &ends, report);
}
