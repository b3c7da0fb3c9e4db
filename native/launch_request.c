/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "launch_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIXED_FDS 3 /* the listener, the status file, the writable directory */

static int take_filter(const struct item *item, struct launch *launch) {
  if (launch->filter != NULL || item->length == 0 ||
      item->length % sizeof(struct sock_filter) != 0 ||
      item->length / sizeof(struct sock_filter) > BPF_MAXINSNS) {
    errno = EPROTO;
    return -1;
  }
  launch->filter = malloc(item->length);
  if (launch->filter == NULL)
    return -1;
  memcpy(launch->filter, item->value, item->length);
  launch->filter_length = (uint16_t)(item->length / sizeof(struct sock_filter));
  return 0;
}

static int take_tmpfs(const struct item *item, struct launch *launch) {
  struct tmpfs_mount *mount = &launch->tmpfs[launch->tmpfs_count];
  if (launch->tmpfs_count == LAUNCH_MAX_TMPFS || item->length <= sizeof mount->size) {
    errno = EPROTO;
    return -1;
  }
  struct item path = {.value = item->value + sizeof mount->size,
                      .length = item->length - sizeof mount->size};
  memcpy(&mount->size, item->value, sizeof mount->size);
  if (item_text(&path, &mount->path) < 0)
    return -1;
  launch->tmpfs_count++;
  return 0;
}

static int take_rlimit(const struct item *item, struct launch *launch) {
  if (launch->rlimit_count == LAUNCH_MAX_RLIMITS) {
    errno = EPROTO;
    return -1;
  }
  struct resource_limit *limit = &launch->rlimits[launch->rlimit_count++];
  return item_number(item, limit, sizeof *limit);
}

static int take_bind(const struct item *item, struct launch *launch) {
  if (launch->bind_count == LAUNCH_MAX_BINDS || item->length == 0) {
    errno = EPROTO;
    return -1;
  }
  return item_text(item, &launch->bind_paths[launch->bind_count++]);
}

static int take_item(const struct item *item, struct launch *launch, uint32_t *cgroup2_count) {
  switch (item->tag) {
  case WIRE_LAUNCH_ID:
    return item_text(item, &launch->id);
  case WIRE_LAUNCH_HOSTNAME:
    return item_text(item, &launch->hostname);
  case WIRE_LAUNCH_UID_MAP:
    return item_text(item, &launch->uid_map);
  case WIRE_LAUNCH_GID_MAP:
    return item_text(item, &launch->gid_map);
  case WIRE_LAUNCH_FLAGS:
    return item_number(item, &launch->flags, sizeof launch->flags);
  case WIRE_LAUNCH_LAYERS:
    return item_number(item, &launch->layer_count, sizeof launch->layer_count);
  case WIRE_LAUNCH_CGROUP1:
    return item_number(item, &launch->cgroup1_count, sizeof launch->cgroup1_count);
  case WIRE_LAUNCH_CGROUP2:
    return item_number(item, cgroup2_count, sizeof *cgroup2_count);
  case WIRE_LAUNCH_SHM_SIZE:
    return item_number(item, &launch->shm_size, sizeof launch->shm_size);
  case WIRE_LAUNCH_DEADLINE:
    return item_number(item, &launch->deadline, sizeof launch->deadline);
  case WIRE_LAUNCH_SECCOMP:
    return take_filter(item, launch);
  case WIRE_LAUNCH_TMPFS:
    return take_tmpfs(item, launch);
  case WIRE_LAUNCH_OWNER:
    return item_number(item, &launch->owner, sizeof launch->owner);
  case WIRE_LAUNCH_BIND:
    return take_bind(item, launch);
  case WIRE_LAUNCH_RLIMIT:
    return take_rlimit(item, launch);
  default:
    errno = EPROTO;
    return -1;
  }
}

/* Give the request's descriptors their meaning, once all counts are known. */
static int assign_fds(const struct request *request, struct launch *launch,
                      uint32_t cgroup2_count) {
  if (launch->layer_count == 0 || launch->layer_count > LAUNCH_MAX_LAYERS ||
      launch->cgroup1_count > WIRE_MAX_FDS || cgroup2_count > 1 ||
      request->fd_count != FIXED_FDS + launch->layer_count + launch->bind_count +
                               launch->cgroup1_count + cgroup2_count) {
    errno = EBADF;
    return -1;
  }
  launch->listener = request->fds[0];
  launch->status = request->fds[1];
  launch->rw = request->fds[2];
  launch->layers = request->fds + FIXED_FDS;
  launch->binds = launch->layers + launch->layer_count;
  launch->cgroup1 = launch->binds + launch->bind_count;
  launch->cgroup2 = cgroup2_count == 1 ? request->fds[request->fd_count - 1] : -1;
  return 0;
}

int parse_launch(const struct request *request, struct launch *launch, struct report *report) {
  memset(launch, 0, sizeof *launch);
  if (request->kind != WIRE_LAUNCH)
    return fail_with(report, EPROTO, "request", "not a launch");
  uint32_t cgroup2_count = 0;
  size_t position = 0;
  struct item item;
  int more;
  while ((more = next_item(request, &position, &item)) > 0)
    if (take_item(&item, launch, &cgroup2_count) < 0)
      return fail(report, "request", "a launch item");
  if (more < 0)
    return fail_with(report, EPROTO, "request", "truncated");
  if (launch->id == NULL || launch->hostname == NULL || launch->uid_map == NULL ||
      launch->gid_map == NULL || launch->filter == NULL)
    return fail_with(report, EPROTO, "request", "an item is missing");
  if (assign_fds(request, launch, cgroup2_count) < 0)
    return fail(report, "request", "descriptors");
  return 0;
}

void release_launch(struct launch *launch) {
  free(launch->id);
  free(launch->hostname);
  free(launch->uid_map);
  free(launch->gid_map);
  free(launch->filter);
  for (size_t i = 0; i < launch->tmpfs_count; i++)
    free(launch->tmpfs[i].path);
  for (size_t i = 0; i < launch->bind_count; i++)
    free(launch->bind_paths[i]);
  memset(launch, 0, sizeof *launch);
}
