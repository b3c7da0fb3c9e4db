/* SPDX-License-Identifier: Apache-2.0 */
/* Messages out of a client's byte stream, without ever waiting for the rest of one. */
#ifndef HUTCH_INBOX_H
#define HUTCH_INBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct inbox {
  uint8_t *bytes; /* the owner's */
  size_t room, have;
};

/* Take what has come; false when the client is gone, or has no business here. */
bool inbox_fill(struct inbox *inbox, int sock);

/* The first message, if it is there as a whole; it stays until it is dropped. */
bool inbox_peek(const struct inbox *inbox, uint32_t *type, const uint8_t **body, size_t *length);
void inbox_drop(struct inbox *inbox);

#endif
