/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "output_log.h"
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* How much of it could be written. */
static size_t write_all(int fd, const void *data, size_t length) {
  size_t done = 0;
  while (done < length) {
    ssize_t written = write(fd, (const char *)data + done, length - done);
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      break;
    done += (size_t)written;
  }
  return done;
}

void output_log_append(struct output_log *log, uint32_t stream, const void *data, size_t length) {
  uint64_t left = log->limit > log->size ? log->limit - log->size : 0;
  size_t kept = length < left ? length : (size_t)left;
  log->dropped += length - kept;
  if (kept == 0)
    return;
  if (log->stream != stream) {
    struct wire_index_entry entry = {.offset = log->size, .stream = stream};
    if (write_all(log->index, &entry, sizeof entry) < sizeof entry) {
      log->limit = log->size; /* the disk is full: what follows would be nobody's */
      log->dropped += kept;
      return;
    }
    log->stream = stream;
  }
  size_t written = write_all(log->log, data, kept);
  log->size += written;
  log->dropped += kept - written;
}
