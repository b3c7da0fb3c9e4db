/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "output_log.h"
#include "wire.h"

#include <errno.h>
#include <stdbool.h>
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

/* Say whose the following bytes are; false where there is no room to say it. */
static bool begin_stream(struct output_log *log, uint32_t stream) {
  struct wire_index_entry entry = {.offset = log->size, .stream = stream};
  if (log->stream == stream)
    return true;
  if (log->limit - log->indexed < sizeof entry)
    return false;
  if (write_all(log->index, &entry, sizeof entry) < sizeof entry) {
    log->limit = log->indexed = 0; /* the disk is full, and what follows would be nobody's */
    return false;
  }
  log->indexed += sizeof entry;
  log->stream = stream;
  return true;
}

void output_log_append(struct output_log *log, uint32_t stream, const void *data, size_t length) {
  uint64_t left = log->limit > log->kept[stream] ? log->limit - log->kept[stream] : 0;
  size_t kept = length < left ? length : (size_t)left;
  if (kept > 0 && !begin_stream(log, stream))
    kept = 0;
  size_t written = write_all(log->log, data, kept);
  log->size += written;
  log->kept[stream] += written;
  log->dropped += length - written;
}
