/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "users.h"
#include "scoped.h"
#include "syscalls.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_FILE (1024U * 1024)
#define MAX_ID 65535 /* what a sandbox's user namespace maps */

/* A piece of a text that is not NUL-terminated. */
struct span {
  const char *start;
  size_t length;
};

static struct span span_of(const char *text) { return (struct span){text, strlen(text)}; }

static bool same(struct span a, struct span b) {
  return a.length == b.length && memcmp(a.start, b.start, a.length) == 0;
}

/* Split off what is before `separator`; false at the end of the text. */
static bool split(struct span *rest, char separator, struct span *part) {
  if (rest->start == NULL)
    return false;
  const char *found = memchr(rest->start, separator, rest->length);
  if (found == NULL) {
    *part = *rest;
    rest->start = NULL;
    return true;
  }
  part->start = rest->start;
  part->length = (size_t)(found - rest->start);
  rest->length -= part->length + 1;
  rest->start = found + 1;
  return true;
}

/* The fields of a line; false if it has fewer. */
static bool split_fields(struct span line, struct span *fields, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (!split(&line, ':', &fields[i]))
      return false;
  return true;
}

static bool parse_id(struct span text, uint32_t *id) {
  if (text.length == 0 || text.length > 5)
    return false;
  uint32_t value = 0;
  for (size_t i = 0; i < text.length; i++) {
    if (text.start[i] < '0' || text.start[i] > '9')
      return false;
    value = value * 10 + (uint32_t)(text.start[i] - '0');
  }
  *id = value;
  return value <= MAX_ID;
}

static void copy(struct span text, char *to, size_t size) {
  size_t length = text.length < size ? text.length : size - 1;
  memcpy(to, text.start, length);
  to[length] = '\0';
}

/* Take the first entry of that name, or of that uid if it is none. */
static bool find_user(const char *passwd, struct span wanted, const uint32_t *uid,
                      struct identity *identity) {
  struct span rest = span_of(passwd), line, field[6] = {{0}};
  while (split(&rest, '\n', &line)) {
    uint32_t entry_uid, entry_gid;
    if (!split_fields(line, field, 6) || !parse_id(field[2], &entry_uid) ||
        !parse_id(field[3], &entry_gid))
      continue;
    if (!same(field[0], wanted) && (uid == NULL || *uid != entry_uid))
      continue;
    identity->uid = entry_uid;
    identity->gid = entry_gid;
    copy(field[0], identity->name, sizeof identity->name);
    copy(field[5], identity->home, sizeof identity->home);
    return true;
  }
  return false;
}

static bool find_group(const char *group, struct span wanted, gid_t *gid) {
  struct span rest = span_of(group), line, field[3] = {{0}};
  if (parse_id(wanted, gid))
    return true;
  while (split(&rest, '\n', &line))
    if (split_fields(line, field, 3) && same(field[0], wanted) && parse_id(field[2], gid))
      return true;
  return false;
}

static void add_group(struct identity *identity, gid_t gid) {
  for (size_t i = 0; i < identity->group_count; i++)
    if (identity->groups[i] == gid)
      return;
  if (identity->group_count < MAX_GROUPS)
    identity->groups[identity->group_count++] = gid;
}

static void add_memberships(const char *group, struct identity *identity) {
  struct span rest = span_of(group), line, field[4] = {{0}}, member;
  while (split(&rest, '\n', &line)) {
    uint32_t gid;
    if (!split_fields(line, field, 4) || !parse_id(field[2], &gid))
      continue;
    while (split(&field[3], ',', &member))
      if (member.length > 0 && same(member, span_of(identity->name)))
        add_group(identity, gid);
  }
}

int find_identity(const char *user, const char *passwd, const char *group,
                  struct identity *identity, struct report *report) {
  memset(identity, 0, sizeof *identity);
  struct span rest = span_of(user), name, group_name = {0};
  split(&rest, ':', &name);
  bool has_group = split(&rest, ':', &group_name);
  uint32_t uid;
  bool numeric = parse_id(name, &uid);
  if (!find_user(passwd, name, numeric ? &uid : NULL, identity)) {
    if (!numeric)
      return fail_with(report, ENOENT, "user", user);
    identity->uid = uid;
  }
  if (identity->home[0] != '/')
    memcpy(identity->home, "/", 2);
  if (has_group && !find_group(group, group_name, &identity->gid))
    return fail_with(report, ENOENT, "user", user);
  add_group(identity, identity->gid);
  if (!has_group && identity->name[0] != '\0')
    add_memberships(group, identity);
  return 0;
}

/*
 * The text of a file of the sandbox, empty if there is none. It may have been replaced by
 * anything: a FIFO, a device, a link into /proc.
 */
static char *read_text(const char *path) {
  scoped_fd fd =
      open_resolved(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, RESOLVE_NO_MAGICLINKS);
  if (fd < 0)
    return strdup("");
  struct stat status;
  if (fstat(fd, &status) < 0)
    return NULL;
  if (!S_ISREG(status.st_mode) || status.st_size > MAX_FILE) {
    errno = EINVAL;
    return NULL;
  }
  char *text = malloc((size_t)status.st_size + 1);
  if (text == NULL)
    return NULL;
  size_t length = 0;
  ssize_t got = 1;
  while (got > 0 && length < (size_t)status.st_size) {
    got = read(fd, text + length, (size_t)status.st_size - length);
    length += got > 0 ? (size_t)got : 0;
  }
  text[length] = '\0';
  return text;
}

int look_up_identity(const char *user, struct identity *identity, struct report *report) {
  scoped_memory char *passwd = read_text("/etc/passwd");
  if (passwd == NULL)
    return fail(report, "user", "/etc/passwd");
  scoped_memory char *group = read_text("/etc/group");
  if (group == NULL)
    return fail(report, "user", "/etc/group");
  return find_identity(user, passwd, group, identity, report);
}
