/* SPDX-License-Identifier: Apache-2.0 */
/* Requests in, messages out: reading and writing what wire.h defines. */
#ifndef HUTCH_MESSAGES_H
#define HUTCH_MESSAGES_H

#include "report.h"
#include "wire.h"

#include <stddef.h>
#include <sys/types.h>

/* A request as it came; owns its items and descriptors. One that is taken over becomes -1. */
struct request {
  uint32_t kind;
  size_t length;
  uint8_t *items;
  int fds[WIRE_MAX_FDS];
  size_t fd_count;
};

struct item {
  uint32_t tag;
  size_t length;
  const uint8_t *value; /* inside the request */
};

/* Receive once, with the descriptors that come along; they are close-on-exec. */
ssize_t receive_with_fds(int sock, void *data, size_t length, int fds[static WIRE_MAX_FDS],
                         size_t *count);

/* Receive a whole request; 0, or -1 with errno, EPROTO where it is none. Release it either way. */
int receive_request(int sock, struct request *request);
void release_request(struct request *request);

/* Step through the items: 1 with an item, 0 at the end, -1 where they are malformed. */
int next_item(const struct request *request, size_t *position, struct item *item);

/* An item's text as a string of its own; -1 with EPROTO if there is one, or it holds a NUL. */
int item_text(const struct item *item, char **text);

/* An item's number of `size` bytes; -1 with EPROTO if the item has another size. */
int item_number(const struct item *item, void *number, size_t size);

int send_message(int sock, uint32_t type, const void *body, size_t length, const int *fds,
                 size_t fd_count);
int send_report(int sock, const struct report *report);

#endif
