/* SPDX-License-Identifier: Apache-2.0 */
/* What parses other people's bytes, under the sanitizers: `make -C native test`. */
#define _GNU_SOURCE
#include "../exec_request.h"
#include "../inbox.h"
#include "../launch_request.h"
#include "../output_log.h"
#include "../tree.h"
#include "../users.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static int count, failed;

static void check(bool holds, const char *what, int line) {
  printf("%s %d - %s (line %d)\n", holds ? "ok" : "not ok", ++count, what, line);
  failed += !holds;
}

#define CHECK(condition) check(condition, #condition, __LINE__)

/* -- users ------------------------------------------------------------------------------------ */

static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\n"
                             "broken\n"
                             "::::::\n"
                             "big:x:99999:0::/:\n"
                             "user:x:1000:100:A,B:/home/user:/bin/sh\n"
                             "nohome:x:7:7::relative:/bin/sh\n"
                             "last:x:8:9::/last";
static const char group[] = "root:x:0:\nusers:x:100:\nextra:x:50:other,user\nbad:x:y:user\n"
                            "twice:x:100:user\nshort:x:5\n";

static void test_users(void) {
  struct identity identity;
  struct report report;
  CHECK(find_identity("user", passwd, group, &identity, &report) == 0);
  CHECK(identity.uid == 1000 && identity.gid == 100 && strcmp(identity.home, "/home/user") == 0);
  CHECK(identity.group_count == 2 && identity.groups[0] == 100 && identity.groups[1] == 50);
  CHECK(find_identity("1000", passwd, group, &identity, &report) == 0 && identity.gid == 100);
  CHECK(find_identity("user:extra", passwd, group, &identity, &report) == 0 && identity.gid == 50 &&
        identity.group_count == 1);
  CHECK(find_identity("12:34", passwd, group, &identity, &report) == 0 && identity.uid == 12 &&
        identity.gid == 34 && strcmp(identity.home, "/") == 0 && identity.name[0] == '\0');
  CHECK(find_identity("nohome", passwd, group, &identity, &report) == 0 &&
        strcmp(identity.home, "/") == 0);
  CHECK(find_identity("last", passwd, group, &identity, &report) == 0 && identity.gid == 9);
  const char *unknown[] = {"big", "broken",    "",  "65536", "99999999999",
                           "-1",  "user:none", ":", "0x1"};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
    CHECK(find_identity(unknown[i], passwd, group, &identity, &report) < 0 &&
          report.error == ENOENT);
  CHECK(find_identity("0", "", "", &identity, &report) == 0 && identity.uid == 0);
}

static void test_long_fields(void) {
  struct identity identity;
  struct report report;
  char line[8192];
  memset(line, 'h', sizeof line);
  memcpy(line, "u:x:1:1::/", 10);
  line[sizeof line - 1] = '\0';
  CHECK(find_identity("u", line, "", &identity, &report) == 0);
  CHECK(strlen(identity.home) == sizeof identity.home - 1);
}

/* -- process trees ---------------------------------------------------------------------------- */

static void test_stat(void) {
  char state;
  CHECK(parse_stat("12 (sh) S 34 12 12 0", &state) == 34 && state == 'S');
  CHECK(parse_stat("12 (a) b) (c)\n) R 7 1", &state) == 7 && state == 'R');
  CHECK(parse_stat("", &state) == -1);
  CHECK(parse_stat("12 (sh", &state) == -1);
  CHECK(parse_stat("12 (sh)", &state) == -1);
}

/* -- requests --------------------------------------------------------------------------------- */

struct builder {
  uint8_t bytes[4096];
  size_t length;
};

static void add(struct builder *builder, uint32_t tag, const void *value, size_t length) {
  struct wire_item_header header = {.tag = tag, .length = (uint32_t)length};
  memcpy(builder->bytes + builder->length, &header, sizeof header);
  memcpy(builder->bytes + builder->length + sizeof header, value, length);
  builder->length += sizeof header + length;
}

static void add_text(struct builder *builder, uint32_t tag, const char *text) {
  add(builder, tag, text, strlen(text));
}

static int parse_as_exec(struct builder *builder, struct exec *exec) {
  struct request request = {.kind = WIRE_EXEC, .items = builder->bytes, .length = builder->length};
  struct report report;
  int result = parse_exec(&request, exec, &report);
  return result;
}

static void test_exec(void) {
  struct builder builder = {.length = 0};
  struct exec exec;
  add_text(&builder, WIRE_EXEC_ARGV, "echo");
  add_text(&builder, WIRE_EXEC_ARGV, "");
  add_text(&builder, WIRE_EXEC_ENV, "A=b");
  add_text(&builder, WIRE_EXEC_CWD, "/");
  CHECK(parse_as_exec(&builder, &exec) < 0); /* no user */
  release_exec(&exec);
  add_text(&builder, WIRE_EXEC_USER, "0");
  CHECK(parse_as_exec(&builder, &exec) == 0);
  CHECK(strcmp(exec.argv[0], "echo") == 0 && exec.argv[1][0] == '\0' && exec.argv[2] == NULL);
  CHECK(strcmp(exec.environment[0], "A=b") == 0 && exec.environment[1] == NULL);
  release_exec(&exec);
  add(&builder, WIRE_EXEC_FLAGS, "xx", 2); /* a number of the wrong size */
  CHECK(parse_as_exec(&builder, &exec) < 0);
  release_exec(&exec);
}

static void test_malformed_items(void) {
  struct exec exec;
  struct builder twice = {.length = 0};
  add_text(&twice, WIRE_EXEC_ARGV, "a");
  add_text(&twice, WIRE_EXEC_USER, "0");
  add_text(&twice, WIRE_EXEC_CWD, "/");
  add_text(&twice, WIRE_EXEC_CWD, "/");
  CHECK(parse_as_exec(&twice, &exec) < 0);
  release_exec(&exec);
  struct builder nul = {.length = 0};
  add(&nul, WIRE_EXEC_ARGV, "a\0b", 3);
  CHECK(parse_as_exec(&nul, &exec) < 0);
  release_exec(&exec);
  struct builder unknown = {.length = 0};
  add_text(&unknown, 4711, "x");
  CHECK(parse_as_exec(&unknown, &exec) < 0);
  release_exec(&exec);
  struct builder cut = {.length = 0};
  add_text(&cut, WIRE_EXEC_ARGV, "abc");
  for (size_t length = 1; length < cut.length; length++) {
    struct builder shorter = cut;
    shorter.length = length;
    CHECK(parse_as_exec(&shorter, &exec) < 0);
    release_exec(&exec);
  }
}

static void test_launch_descriptors(void) {
  struct builder builder = {.length = 0};
  struct launch launch;
  struct report report;
  uint32_t layers = 2, cgroups = 1, unified = 0;
  add_text(&builder, WIRE_LAUNCH_ID, "id");
  add_text(&builder, WIRE_LAUNCH_HOSTNAME, "h");
  add_text(&builder, WIRE_LAUNCH_UID_MAP, "m");
  add_text(&builder, WIRE_LAUNCH_GID_MAP, "m");
  add(&builder, WIRE_LAUNCH_SECCOMP, "\6\0\0\0\0\0\377\177", 8);
  add(&builder, WIRE_LAUNCH_LAYERS, &layers, 4);
  add(&builder, WIRE_LAUNCH_CGROUP1, &cgroups, 4);
  add(&builder, WIRE_LAUNCH_CGROUP2, &unified, 4);
  struct request request = {.kind = WIRE_LAUNCH,
                            .items = builder.bytes,
                            .length = builder.length,
                            .fds = {10, 11, 12, 13, 14, 15},
                            .fd_count = 6};
  CHECK(parse_launch(&request, &launch, &report) == 0);
  CHECK(launch.listener == 10 && launch.rw == 12 && launch.layers[1] == 14 &&
        launch.cgroup1[0] == 15 && launch.cgroup2 == -1);
  release_launch(&launch);
  request.fd_count = 5;
  CHECK(parse_launch(&request, &launch, &report) < 0 && strcmp(report.step, "request") == 0);
  release_launch(&launch);
}

/* -- messages --------------------------------------------------------------------------------- */

static void test_receive_request(void) {
  int pair[2];
  struct request request;
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  struct wire_request_header header = {.magic = WIRE_MAGIC, .kind = 7, .length = 3};
  CHECK(write(pair[0], &header, 5) == 5); /* in two pieces */
  CHECK(write(pair[0], (char *)&header + 5, sizeof header - 5) == sizeof header - 5);
  CHECK(write(pair[0], "abc", 3) == 3);
  CHECK(receive_request(pair[1], &request) == 0 && request.kind == 7 && request.length == 3);
  release_request(&request);
  header.length = WIRE_MAX_REQUEST + 1;
  CHECK(write(pair[0], &header, sizeof header) == sizeof header);
  CHECK(receive_request(pair[1], &request) < 0 && errno == EPROTO);
  release_request(&request);
  close(pair[0]);
  CHECK(receive_request(pair[1], &request) < 0 && errno == ECONNRESET);
  release_request(&request);
  close(pair[1]);
}

static void test_inbox(void) {
  int pair[2];
  uint8_t room[64], out[128];
  struct inbox inbox = {.bytes = room, .room = sizeof room};
  struct wire_message_header header = {.type = 5, .length = 4};
  uint32_t type;
  const uint8_t *body;
  size_t length;
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  CHECK(inbox_fill(&inbox, pair[1]) && !inbox_peek(&inbox, &type, &body, &length));
  memcpy(out, &header, sizeof header);
  memcpy(out + sizeof header, "abcd", 4);
  CHECK(write(pair[0], out, 10) == 10);
  CHECK(inbox_fill(&inbox, pair[1]) && !inbox_peek(&inbox, &type, &body, &length));
  CHECK(write(pair[0], out + 10, 2) == 2 && write(pair[0], out, 12) == 12);
  CHECK(inbox_fill(&inbox, pair[1]) && inbox_peek(&inbox, &type, &body, &length));
  CHECK(type == 5 && length == 4 && memcmp(body, "abcd", 4) == 0);
  inbox_drop(&inbox);
  CHECK(inbox_peek(&inbox, &type, &body, &length));
  inbox_drop(&inbox);
  CHECK(!inbox_peek(&inbox, &type, &body, &length) && inbox.have == 0);
  header.length = 1000;
  CHECK(write(pair[0], &header, sizeof header) == sizeof header);
  CHECK(!inbox_fill(&inbox, pair[1])); /* larger than there is room for */
  close(pair[0]);
  close(pair[1]);
}

static void test_output_log(void) {
  struct output_log log = {
      .log = memfd_create("log", 0), .index = memfd_create("index", 0), .limit = 40};
  struct wire_index_entry entries[4];
  char many[64] = {0};
  output_log_append(&log, STREAM_OUTPUT, "aaa", 3);
  output_log_append(&log, STREAM_OUTPUT, "bbb", 3);
  output_log_append(&log, STREAM_ERRORS, "cccccc", 6);
  CHECK(log.size == 12 && log.dropped == 0);
  CHECK(pread(log.index, entries, sizeof entries, 0) == 2 * sizeof *entries);
  CHECK(entries[0].offset == 0 && entries[0].stream == STREAM_OUTPUT);
  CHECK(entries[1].offset == 6 && entries[1].stream == STREAM_ERRORS);
  output_log_append(&log, STREAM_ERRORS, many, sizeof many); /* 34 of them: its own limit */
  CHECK(log.size == 46 && log.dropped == 30);
  output_log_append(&log, STREAM_OUTPUT, "d", 1); /* the index has no room for the change */
  CHECK(log.size == 46 && log.dropped == 31);
  close(log.log);
  close(log.index);
}

int main(void) {
  test_users();
  test_long_fields();
  test_stat();
  test_exec();
  test_malformed_items();
  test_launch_descriptors();
  test_receive_request();
  test_inbox();
  test_output_log();
  printf("1..%d\n", count);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
