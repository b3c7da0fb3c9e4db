/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "inbox.h"
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

static struct wire_message_header header_of(const struct inbox *inbox) {
  struct wire_message_header header = {0};
  if (inbox->have >= sizeof header)
    memcpy(&header, inbox->bytes, sizeof header);
  return header;
}

bool inbox_fill(struct inbox *inbox, int sock) {
  if (inbox->have < inbox->room) {
    ssize_t got = recv(sock, inbox->bytes + inbox->have, inbox->room - inbox->have, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
      return false;
    inbox->have += got > 0 ? (size_t)got : 0;
  }
  return header_of(inbox).length <= inbox->room - sizeof(struct wire_message_header);
}

bool inbox_peek(const struct inbox *inbox, uint32_t *type, const uint8_t **body, size_t *length) {
  struct wire_message_header header = header_of(inbox);
  if (inbox->have < sizeof header || inbox->have < sizeof header + header.length)
    return false;
  *type = header.type;
  *length = header.length;
  *body = inbox->bytes + sizeof header;
  return true;
}

void inbox_drop(struct inbox *inbox) {
  size_t taken = sizeof(struct wire_message_header) + header_of(inbox).length;
  inbox->have -= taken;
  memmove(inbox->bytes, inbox->bytes + taken, inbox->have);
}
