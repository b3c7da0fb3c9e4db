/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor: the least a sandbox of these namespaces and mounts costs on this
 * kernel, with nothing checked, masked, filtered or recorded. `floor DIR N`: N
 * times, make namespaces with clone3, map ids, mount an overlay of DIR/lower,
 * /proc, /dev, /dev/pts, /dev/shm and /tmp, pivot, and end; prints the
 * microseconds to "ready" and to "gone" of each.
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
#include <sys/mount.h>
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

static void become_sandbox(int go, int ready) {
  char byte;
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
  must((int)write(ready, "", 1), "ready");
  pause();
}

static void once(void) {
  int go[2], ready[2];
  char byte;
  must(system("rm -rf rw && mkdir -p rw/upper rw/work merged && chown -R "
              "1000000000 rw"),
       "rw");
  must(pipe(go), "pipe");
  must(pipe(ready), "pipe");
  long start = now_us();
  struct clone_args args = {.flags = CLONE_NEWUSER | CLONE_NEWPID |
                                     CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |
                                     CLONE_NEWUTS | CLONE_NEWCGROUP,
                            .exit_signal = SIGCHLD};
  pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
  must(pid, "clone3");
  if (pid == 0)
    become_sandbox(go[0], ready[1]);
  write_map(pid, "uid_map");
  write_map(pid, "gid_map");
  must((int)write(go[1], "", 1), "go");
  close(ready[1]);
  must((int)read(ready[0], &byte, 1) - 1, "ready");
  long made = now_us();
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  printf("%ld %ld\n", made - start, now_us() - made);
  fflush(stdout);
  close(go[0]), close(go[1]), close(ready[0]);
}

int main(int argc, char **argv) {
  if (argc != 3)
    return EXIT_FAILURE;
  must(chdir(argv[1]), argv[1]);
  for (int i = atoi(argv[2]); i > 0; i--)
    once();
  return EXIT_SUCCESS;
}
