/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzing what reads requests and the sandbox's files. With clang, libFuzzer drives it; elsewhere
 * the small driver below mutates valid inputs for FUZZ_SECONDS, from a seed that it prints.
 */
#define _GNU_SOURCE
#include "../exec_request.h"
#include "../launch_request.h"
#include "../tree.h"
#include "../users.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_requests(const uint8_t *data, size_t size) {
  struct report report;
  uint8_t *copy = malloc(size + 1);
  if (copy == NULL)
    return;
  memcpy(copy, data, size);
  struct request request = {.kind = WIRE_EXEC, .items = copy, .length = size};
  struct exec exec;
  parse_exec(&request, &exec, &report);
  release_exec(&exec);
  struct launch launch;
  request.kind = WIRE_LAUNCH;
  request.fd_count = size > 0 ? data[0] % 16 : 0;
  parse_launch(&request, &launch, &report);
  release_launch(&launch);
  free(copy);
}

static void fuzz_texts(const uint8_t *data, size_t size) {
  struct report report;
  struct identity identity;
  char state;
  char *text = malloc(size + 1);
  if (text == NULL)
    return;
  memcpy(text, data, size);
  text[size] = '\0';
  find_identity("user", text, text, &identity, &report);
  find_identity("1000:staff", text, text, &identity, &report);
  find_identity(text, "user:x:1:1::/:", text, &identity, &report);
  parse_stat(text, &state);
  free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_requests(data, size);
  fuzz_texts(data, size);
  return 0;
}

#ifdef OWN_DRIVER

#define SEED(text) {text, sizeof text - 1}

static const struct {
  const char *bytes;
  size_t length;
} seeds[] = {
    SEED("\1\0\0\0\4\0\0\0echo\2\0\0\0\3\0\0\0A=b\3\0\0\0\1\0\0\0/\4\0\0\0\1\0\0\0\60"),
    SEED("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
    SEED("staff:x:50:user,other\n12 (sh) S 34 12 12 0"),
    SEED("\5\0\0\0\4\0\0\0\2\0\0\0\6\0\0\0\4\0\0\0\1\0\0\0\11\0\0\0\10\0\0\0\6\0\0\0\0\0\377\177"),
};

static size_t mutate(uint8_t *data, size_t size, size_t room) {
  for (long i = random() % 8; i >= 0; i--) {
    size_t at = size > 0 ? (size_t)random() % size : 0;
    switch (random() % 4) {
    case 0:
      data[at] = (uint8_t)random();
      break;
    case 1:
      data[at] ^= (uint8_t)(1 << random() % 8);
      break;
    case 2:
      size = at;
      break;
    default:
      if (size + 16 < room) {
        memmove(data + at + 8, data + at, size - at);
        size += 8;
      }
    }
  }
  return size;
}

int main(void) {
  const char *seconds = getenv("FUZZ_SECONDS");
  time_t end = time(NULL) + (seconds != NULL ? atol(seconds) : 10);
  unsigned seed = (unsigned)time(NULL);
  unsigned long runs = 0;
  uint8_t data[1024];
  printf("seed %u\n", seed);
  srandom(seed);
  while (time(NULL) < end) {
    for (int i = 0; i < 1000; i++, runs++) {
      size_t which = (size_t)random() % (sizeof seeds / sizeof *seeds);
      memset(data, 0, sizeof data);
      memcpy(data, seeds[which].bytes, seeds[which].length);
      LLVMFuzzerTestOneInput(data, mutate(data, seeds[which].length, sizeof data));
    }
  }
  printf("%lu inputs, no finding\n", runs);
  return EXIT_SUCCESS;
}

#endif
