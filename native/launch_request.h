/* SPDX-License-Identifier: Apache-2.0 */
/* A WIRE_LAUNCH, read and checked. */
#ifndef HUTCH_LAUNCH_REQUEST_H
#define HUTCH_LAUNCH_REQUEST_H

#include "messages.h"

#include <linux/filter.h>
#include <stdbool.h>
#include <stdint.h>

#define LAUNCH_MAX_LAYERS 128
#define LAUNCH_MAX_TMPFS 64
#define LAUNCH_MAX_RLIMITS 16
#define LAUNCH_MAX_BINDS 32
#define LAUNCH_MAX_MOUNTS (1 + LAUNCH_MAX_LAYERS + LAUNCH_MAX_BINDS + 1)

struct tmpfs_mount {
  uint64_t size;
  char *path;
};

struct resource_limit {
  uint64_t resource, soft, hard; /* as setrlimit(2) takes them */
};

/* The descriptors belong to the request it was read from. */
struct launch {
  char *id, *hostname, *uid_map, *gid_map;
  uint32_t flags; /* enum wire_launch_flag */
  uint32_t owner;
  uint64_t shm_size;
  int64_t deadline;
  struct sock_filter *filter;
  uint16_t filter_length; /* in instructions */
  struct tmpfs_mount tmpfs[LAUNCH_MAX_TMPFS];
  size_t tmpfs_count;
  char *bind_paths[LAUNCH_MAX_BINDS];
  uint32_t bind_count;
  struct resource_limit rlimits[LAUNCH_MAX_RLIMITS];
  size_t rlimit_count;
  int listener, status, rw;
  const int *layers; /* lowest first */
  uint32_t layer_count;
  const int *binds; /* in the order of their paths */
  const int *cgroup1;
  uint32_t cgroup1_count;
  int cgroup2; /* or -1 */
};

static inline bool launch_has(const struct launch *launch, uint32_t flag) {
  return (launch->flags & flag) != 0;
}

/* How many mounts the launcher hands to the sandbox's init. */
static inline size_t launch_mounts(const struct launch *launch) {
  return 1U + launch->layer_count + launch->bind_count + launch_has(launch, WIRE_OWN_DEVICES);
}

int parse_launch(const struct request *request, struct launch *launch, struct report *report);
void release_launch(struct launch *launch);

#endif
