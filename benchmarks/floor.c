/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor: the least a sandbox of these namespaces and mounts costs on this
 * kernel, with nothing checked, masked, filtered or recorded. `floor DIR N`: N
 * times, make the writable directories and a control group in each hierarchy,
 * make namespaces with clone3, map ids, mount an overlay of DIR/lower, /proc,
 * /dev, /dev/pts, /dev/shm and /tmp, pivot, execute a static init that says it
 * is ready, and then end and remove all of it; prints the microseconds to
 * "ready" and to "gone" of each.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void must(int result, const char *what) {
  if (result < 0) {
    perror(what);
    _exit(EXIT_FAILURE);
  }
}

static void write_map(pid_t pid, const char *name) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
  int fd = open(path, O_WRONLY);
  must((int)write(fd, "0 1000000000 65536", 18), path);
  close(fd);
}

static const char *const hierarchies[] = {
    "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu",     "/sys/fs/cgroup/cpuacct",
    "/sys/fs/cgroup/pids",   "/sys/fs/cgroup/unified", "/sys/fs/cgroup"};
#define HIERARCHIES (sizeof hierarchies / sizeof *hierarchies)

/* The group's path; empty where there is no such hierarchy. */
static void group_path(size_t which, char path[static 128]) {
  char probe[128];
  snprintf(probe, sizeof probe, "%s/cgroup.procs", hierarchies[which]);
  path[0] = '\0';
  if (access(probe, W_OK) == 0)
    snprintf(path, 128, "%s/hutch-floor-%d", hierarchies[which], getpid());
}

/* Make a group in each hierarchy, and open what a process joins it by: of
 * version 1 a file to write "0" to, of version 2 the directory, for clone3.
 * Returns the latter, or -1. */
static int make_groups(int joins[static HIERARCHIES]) {
  int unified = -1;
  for (size_t i = 0; i < HIERARCHIES; i++) {
    char path[128], file[160];
    joins[i] = -1;
    group_path(i, path);
    if (path[0] == '\0')
      continue;
    must(mkdir(path, 0755), path);
    snprintf(file, sizeof file, "%s/tasks", path);
    joins[i] = open(file, O_WRONLY | O_CLOEXEC);
    if (joins[i] < 0)
      unified = joins[i] = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(joins[i], path);
  }
  return unified;
}

static void remove_groups(int joins[static HIERARCHIES]) {
  for (size_t i = 0; i < HIERARCHIES; i++) {
    char path[128];
    if (joins[i] < 0)
      continue;
    close(joins[i]);
    group_path(i, path);
    while (rmdir(path) < 0)
      usleep(200);
  }
}

static void become_sandbox(int go, int ready, int self,
                           int joins[static HIERARCHIES], int unified) {
  char byte;
  for (size_t i = 0; i < HIERARCHIES; i++)
    if (joins[i] >= 0 && joins[i] != unified)
      must((int)write(joins[i], "0", 1), "cgroup");
  must((int)read(go, &byte, 1), "go");
  must(setgid(0), "setgid");
  must(setuid(0), "setuid");
  must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
  must(mount("overlay", "merged", "overlay", 0,
             "userxattr,lowerdir=lower,upperdir=rw/upper,workdir=rw/work"),
       "overlay");
  must(chdir("merged"), "merged");
  must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL),
       "proc");
  must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "size=64k"), "dev");
  must(mkdir("dev/pts", 0755), "dev/pts");
  must(mount("devpts", "dev/pts", "devpts", MS_NOSUID, "newinstance"),
       "devpts");
  must(mkdir("dev/shm", 01777), "dev/shm");
  must(mount("tmpfs", "dev/shm", "tmpfs", MS_NOSUID, NULL), "shm");
  must(mount("tmpfs", "tmp", "tmpfs", MS_NOSUID, NULL), "tmp");
  must((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
  must(umount2(".", MNT_DETACH), "umount");
  must(dup2(ready, 3), "ready");
  fexecve(self, (char *[]){"floor", NULL}, (char *[]){NULL});
  must(-1, "init");
}

static int copy_of_self(void) {
  int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  int copy = memfd_create("floor", MFD_CLOEXEC);
  must(self < 0 ? -1 : copy, "self");
  while (sendfile(copy, self, NULL, 1 << 20) > 0)
    ;
  close(self);
  return copy;
}

static void once(void) {
  int go[2], ready[2], joins[HIERARCHIES];
  char byte;
  int self = copy_of_self();
  must(pipe(go), "pipe");
  must(pipe(ready), "pipe");
  long start = now_us();
  must(mkdir("rw", 0755), "rw");
  must(mkdir("rw/upper", 0755), "rw");
  must(mkdir("rw/work", 0755), "rw");
  must(chown("rw/upper", 1000000000, 1000000000), "rw");
  must(chown("rw/work", 1000000000, 1000000000), "rw");
  int unified = make_groups(joins);
  struct clone_args args = {.flags = CLONE_NEWUSER | CLONE_NEWPID |
                                     CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |
                                     CLONE_NEWUTS | CLONE_NEWCGROUP,
                            .exit_signal = SIGCHLD};
  if (unified >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = (uint64_t)unified;
  }
  pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
  must(pid, "clone3");
  if (pid == 0)
    become_sandbox(go[0], ready[1], self, joins, unified);
  write_map(pid, "uid_map");
  write_map(pid, "gid_map");
  must((int)write(go[1], "", 1), "go");
  close(ready[1]);
  must((int)read(ready[0], &byte, 1) - 1, "ready");
  long made = now_us();
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  remove_groups(joins);
  must(rmdir("rw/work/work"), "rw");
  must(rmdir("rw/work"), "rw");
  must(rmdir("rw/upper"), "rw");
  must(rmdir("rw"), "rw");
  printf("%ld %ld\n", made - start, now_us() - made);
  fflush(stdout);
  close(go[0]), close(go[1]), close(ready[0]), close(self);
}

int main(int argc, char **argv) {
  if (argc == 1) { /* init, of the sandbox */
    must((int)write(3, "", 1), "ready");
    pause();
  }
  if (argc != 3)
    return EXIT_FAILURE;
  must(chdir(argv[1]), argv[1]);
  must(mkdir("merged", 0755) < 0 && access("merged", F_OK) < 0 ? -1 : 0,
       "merged");
  for (int i = atoi(argv[2]); i > 0; i--)
    once();
  return EXIT_SUCCESS;
}
