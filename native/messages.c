/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "messages.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Room for the descriptors of one message, aligned as CMSG_DATA wants it. */
union control {
  char bytes[CMSG_SPACE(sizeof(int) * WIRE_MAX_FDS)];
  struct cmsghdr align;
};

/* Take the descriptors that came with a message. */
static size_t take_fds(struct msghdr *message, int fds[static WIRE_MAX_FDS]) {
  size_t taken = 0;
  for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL;
       part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
      continue;
    size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count && taken < WIRE_MAX_FDS; i++)
      memcpy(&fds[taken++], CMSG_DATA(part) + i * sizeof(int), sizeof(int));
  }
  return taken;
}

ssize_t receive_with_fds(int sock, void *data, size_t length, int fds[static WIRE_MAX_FDS],
                         size_t *count) {
  union control control;
  struct iovec part = {.iov_base = data, .iov_len = length};
  struct msghdr message = {
      .msg_iov = &part,
      .msg_iovlen = 1,
      .msg_control = control.bytes,
      .msg_controllen = sizeof control.bytes,
  };
  ssize_t received;
  do
    received = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
  while (received < 0 && errno == EINTR);
  *count = received < 0 ? 0 : take_fds(&message, fds);
  return received;
}

static int receive_all(int sock, void *data, size_t length) {
  uint8_t *at = data;
  while (length > 0) {
    ssize_t received = recv(sock, at, length, 0);
    if (received < 0 && errno == EINTR)
      continue;
    if (received <= 0) {
      errno = received == 0 ? ECONNRESET : errno;
      return -1;
    }
    at += received;
    length -= (size_t)received;
  }
  return 0;
}

static bool header_is_sane(const struct wire_request_header *header) {
  return header->magic == WIRE_MAGIC && header->length <= WIRE_MAX_REQUEST;
}

int receive_request(int sock, struct request *request) {
  struct wire_request_header header;
  memset(request, 0, sizeof *request);
  ssize_t received =
      receive_with_fds(sock, &header, sizeof header, request->fds, &request->fd_count);
  if (received <= 0) {
    errno = received == 0 ? ECONNRESET : errno;
    return -1;
  }
  size_t have = (size_t)received;
  if (receive_all(sock, (uint8_t *)&header + have, sizeof header - have) < 0)
    return -1;
  if (!header_is_sane(&header)) {
    errno = EPROTO;
    return -1;
  }
  request->kind = header.kind;
  request->length = header.length;
  request->items = malloc(header.length + 1U);
  if (request->items == NULL)
    return -1;
  return receive_all(sock, request->items, header.length);
}

void release_request(struct request *request) {
  free(request->items);
  for (size_t i = 0; i < request->fd_count; i++)
    if (request->fds[i] >= 0)
      close(request->fds[i]);
  memset(request, 0, sizeof *request);
}

int next_item(const struct request *request, size_t *position, struct item *item) {
  struct wire_item_header header;
  size_t left = request->length - *position;
  if (left == 0)
    return 0;
  if (left < sizeof header)
    return -1;
  memcpy(&header, request->items + *position, sizeof header);
  if (header.length > left - sizeof header)
    return -1;
  item->tag = header.tag;
  item->length = header.length;
  item->value = request->items + *position + sizeof header;
  *position += sizeof header + header.length;
  return 1;
}

int item_text(const struct item *item, char **text) {
  if (*text != NULL || memchr(item->value, '\0', item->length) != NULL) {
    errno = EPROTO;
    return -1;
  }
  *text = strndup((const char *)item->value, item->length);
  return *text == NULL ? -1 : 0;
}

int item_number(const struct item *item, void *number, size_t size) {
  if (item->length != size) {
    errno = EPROTO;
    return -1;
  }
  memcpy(number, item->value, size);
  return 0;
}

static void attach_fds(struct msghdr *message, union control *control, const int *fds,
                       size_t count) {
  if (count == 0)
    return;
  message->msg_control = control->bytes;
  message->msg_controllen = CMSG_SPACE(sizeof(int) * count);
  struct cmsghdr *part = CMSG_FIRSTHDR(message);
  if (part == NULL)
    return;
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(int) * count);
  memcpy(CMSG_DATA(part), fds, sizeof(int) * count);
}

int send_message(int sock, uint32_t type, const void *body, size_t length, const int *fds,
                 size_t fd_count) {
  struct wire_message_header header = {.type = type, .length = (uint32_t)length};
  union control control;
  memset(&control, 0, sizeof control);
  struct iovec parts[] = {
      {.iov_base = &header, .iov_len = sizeof header},
      {.iov_base = (void *)(uintptr_t)body, .iov_len = length},
  };
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = length > 0 ? 2 : 1};
  attach_fds(&message, &control, fds, fd_count);
  ssize_t sent;
  do
    sent = sendmsg(sock, &message, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  /* A message is far below what an empty socket buffer takes: a partial one means a peer that
   * does not read, which is as good as gone. */
  return sent == (ssize_t)(sizeof header + length) ? 0 : -1;
}

int send_report(int sock, const struct report *report) {
  struct {
    struct wire_error error;
    char subject[sizeof report->subject];
  } __attribute__((packed)) body;
  memset(&body, 0, sizeof body);
  body.error.error = report->error;
  memcpy(body.error.step, report->step, strnlen(report->step, sizeof body.error.step - 1));
  size_t length = strnlen(report->subject, sizeof body.subject);
  memcpy(body.subject, report->subject, length);
  return send_message(sock, WIRE_ERROR, &body, sizeof body.error + length, NULL, 0);
}
