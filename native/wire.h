/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The words the engine and hutch-init exchange over unix stream sockets. The Python side is
 * src/hutch/runtime/native/wire.py; tests/runtime/test_wire.py holds both to this file.
 *
 * Everything is in the byte order of the machine: both ends are always on one host.
 *
 * A request is one struct wire_request_header and `length` bytes of items. An item is one
 * struct wire_item_header and `length` bytes of value, padded to nothing. The request's file
 * descriptors come with its first byte (SCM_RIGHTS), in the order its kind lists.
 *
 * A message is one struct wire_message_header and `length` bytes of body.
 */
#ifndef HUTCH_WIRE_H
#define HUTCH_WIRE_H

#include <stdint.h>

#define WIRE_MAGIC 0x31545548U              /* "HUT1" */
#define WIRE_MAX_REQUEST (8U * 1024 * 1024) /* argv and env of an execve are below 6 MiB */
#define WIRE_MAX_MESSAGE (64U * 1024)
#define WIRE_MAX_FDS 240        /* below the kernel's SCM_MAX_FD (253) */
#define WIRE_UNKNOWN UINT64_MAX /* in a receipt: not known */

struct wire_request_header {
  uint32_t magic;
  uint32_t kind;   /* enum wire_request_kind */
  uint32_t length; /* of the items, at most WIRE_MAX_REQUEST */
};

struct wire_item_header {
  uint32_t tag;
  uint32_t length;
};

struct wire_message_header {
  uint32_t type;
  uint32_t length; /* of the body, at most WIRE_MAX_MESSAGE */
};

enum wire_request_kind {
  WIRE_LAUNCH = 1,   /* to the launch phase, on a socket that was passed to it (launch.h) */
  WIRE_EXEC = 2,     /* to init: run a program; the connection is the program's handle */
  WIRE_DEADLINE = 3, /* to init: move the deadline; answered by WIRE_OK */
};

/*
 * WIRE_LAUNCH. Descriptors, in this order: the listening socket; the status file; the sandbox's
 * writable directory (holding `upper` and `work`), or with WIRE_DISK a file that is an ext4
 * filesystem and its limit; one directory per layer, lowest first; one per WIRE_LAUNCH_BIND;
 * WIRE_LAUNCH_CGROUP1 times an open `tasks` of a v1 hierarchy; WIRE_LAUNCH_CGROUP2 times
 * (0 or 1) a directory of the v2 hierarchy.
 * Answer: WIRE_READY with one descriptor, the init's pidfd; or WIRE_ERROR.
 */
enum wire_launch_tag {
  WIRE_LAUNCH_ID = 1,        /* text */
  WIRE_LAUNCH_FLAGS = 2,     /* u32 of enum wire_launch_flag */
  WIRE_LAUNCH_UID_MAP = 3,   /* text as /proc/PID/uid_map takes it */
  WIRE_LAUNCH_GID_MAP = 4,   /* text */
  WIRE_LAUNCH_LAYERS = 5,    /* u32: how many layers */
  WIRE_LAUNCH_CGROUP1 = 6,   /* u32 */
  WIRE_LAUNCH_CGROUP2 = 7,   /* u32 */
  WIRE_LAUNCH_TMPFS = 8,     /* repeated: u64 size in bytes, then an absolute path */
  WIRE_LAUNCH_SECCOMP = 9,   /* struct sock_filter[] */
  WIRE_LAUNCH_RLIMIT = 10,   /* repeated: u64 resource, u64 soft, u64 hard */
  WIRE_LAUNCH_DEADLINE = 11, /* i64: CLOCK_BOOTTIME nanoseconds; absent or 0 is none */
  WIRE_LAUNCH_SHM_SIZE = 12, /* u64: bytes of /dev/shm */
  WIRE_LAUNCH_HOSTNAME = 13, /* text */
  WIRE_LAUNCH_BIND = 14,     /* repeated: an absolute path, to show a directory at, read-only */
  WIRE_LAUNCH_OWNER = 15,    /* u32: the uid outside that its user namespace is charged to */
};

enum wire_launch_flag {
  WIRE_READ_ONLY = 1,        /* the root filesystem */
  WIRE_ALLOW_ESCALATION = 2, /* no no_new_privs, no nosuid */
  WIRE_IDMAP_LAYERS = 4,     /* map layers and writable directory by the new user namespace */
  WIRE_OOM_RESET = 8,        /* init and all below it: oom_score_adj at least 0, whatever ours is */
  WIRE_DISK = 16,            /* the writable directory is a filesystem of its own */
  WIRE_OWN_DEVICES = 32,     /* make device nodes for the sandbox; else bind the host's */
};

/*
 * WIRE_EXEC. Descriptors, each only with its flag. WIRE_DETACHED: the log, the index, the exit
 * record and a listening control socket. WIRE_STDIN_FILE: what the program reads.
 * Answer: WIRE_STARTED, later WIRE_EXITED; or WIRE_ERROR and nothing was started. WIRE_STARTED
 * brings the client's ends: [stdin if WIRE_STDIN,] stdout, stderr; or the terminal's master if
 * WIRE_TERMINAL; or none if WIRE_DETACHED, and then the connection is closed after it.
 * Closing the connection of a program that is not detached kills its whole tree.
 */
enum wire_exec_tag {
  WIRE_EXEC_ARGV = 1,      /* repeated: text */
  WIRE_EXEC_ENV = 2,       /* repeated: NAME=VALUE */
  WIRE_EXEC_CWD = 3,       /* absolute path */
  WIRE_EXEC_USER = 4,      /* NAME, UID, NAME:GROUP or UID:GID */
  WIRE_EXEC_FLAGS = 5,     /* u32 of enum wire_exec_flag */
  WIRE_EXEC_SIZE = 6,      /* u16 rows, u16 columns */
  WIRE_EXEC_TIMEOUT = 7,   /* u64 milliseconds; absent or 0 is none */
  WIRE_EXEC_GRACE = 8,     /* u64 milliseconds between SIGTERM and SIGKILL */
  WIRE_EXEC_LOG_LIMIT = 9, /* u64 bytes, of each stream and of the index */
};

enum wire_exec_flag {
  WIRE_STDIN = 1,
  WIRE_TERMINAL = 2,
  WIRE_DETACHED = 4,
  WIRE_MAIN = 8, /* its end ends the sandbox */
  WIRE_STDIN_FILE = 16,
};

/* WIRE_DEADLINE. No descriptors. */
enum wire_deadline_tag {
  WIRE_DEADLINE_AT = 1, /* i64: CLOCK_BOOTTIME nanoseconds; 0 is none */
};

enum wire_message_type {
  /* from hutch-init */
  WIRE_READY = 1,   /* i32: the init's pid in the engine's pid namespace */
  WIRE_ERROR = 2,   /* struct wire_error, then the subject's text */
  WIRE_STARTED = 3, /* i32: the pid in the sandbox */
  WIRE_EXITED = 4,  /* struct wire_exited */
  WIRE_OK = 5,      /* empty */
  /* to the supervisor of a program, on its connection or its control socket */
  WIRE_SIGNAL = 16,      /* i32: to the program's process group */
  WIRE_KILL = 17,        /* empty: end the whole tree, SIGTERM then SIGKILL */
  WIRE_RESIZE = 18,      /* u16 rows, u16 columns */
  WIRE_STDIN_DATA = 19,  /* detached only: bytes, answered by WIRE_OK once the pipe has them all, or
                            WIRE_ERROR */
  WIRE_STDIN_CLOSE = 20, /* detached only: answered by WIRE_OK */
};

struct wire_error {
  char step[32]; /* the layer of isolation or the stage that failed; NUL-padded */
  int32_t error; /* errno */
};

struct wire_exited {
  int32_t status; /* as waitpid(2) gives it */
  uint32_t flags; /* enum wire_exited_flag */
  uint64_t cpu_us;
  uint64_t peak_memory; /* bytes */
  uint64_t bytes_read;
  uint64_t bytes_written;
  uint64_t log_dropped; /* detached: bytes beyond the log's limit */
};

enum wire_exited_flag {
  WIRE_TIMED_OUT = 1,
  WIRE_KILLED = 2, /* by WIRE_KILL or by a closed connection */
};

/*
 * A detached program's files, kept by the engine and written by the supervisor alone:
 *   log    output as it came, both streams.
 *   index  struct wire_index_entry per change of stream, written before the output it describes.
 *   exit   one struct wire_exited, written in one call when the program is over.
 * Its control socket accepts any number of clients; each is greeted with WIRE_STARTED, may send
 * what a connection may, and gets WIRE_EXITED at the end.
 *
 * The status file is written by init in one call just before it ends by itself:
 *   "expired"  or  "main STATUS" (as waitpid(2) gives it).
 */
struct wire_index_entry {
  uint64_t offset; /* in the log */
  uint32_t stream; /* 1 stdout, 2 stderr */
  uint32_t reserved;
};

#endif
