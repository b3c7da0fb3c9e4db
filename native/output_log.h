/* SPDX-License-Identifier: Apache-2.0 */
/* The log of a detached program and its index, as wire.h describes them. */
#ifndef HUTCH_OUTPUT_LOG_H
#define HUTCH_OUTPUT_LOG_H

#include <stddef.h>
#include <stdint.h>

enum { STREAM_OUTPUT = 1, STREAM_ERRORS = 2 };

struct output_log {
  int log, index;   /* opened to append */
  uint64_t limit;   /* of each stream, and of the index */
  uint64_t size;    /* of the log */
  uint64_t kept[3]; /* of it, by stream */
  uint64_t indexed; /* the index's size */
  uint64_t dropped;
  uint32_t stream; /* of the last index entry */
};

/* Append output; what exceeds the limit, or the disk, is counted as dropped. */
void output_log_append(struct output_log *log, uint32_t stream, const void *data, size_t length);

#endif
