/* SPDX-License-Identifier: Apache-2.0 */
/* Who a program runs as: passwd(5) and group(5) of the sandbox, read as hostile text. */
#ifndef HUTCH_USERS_H
#define HUTCH_USERS_H

#include "report.h"

#include <stddef.h>
#include <sys/types.h>

#define MAX_GROUPS 64

struct identity {
  uid_t uid;
  gid_t gid;
  gid_t groups[MAX_GROUPS]; /* supplementary; the primary one among them */
  size_t group_count;
  char name[256]; /* empty for a uid without an entry */
  char home[1024];
};

/*
 * Find "NAME", "UID", "NAME:GROUP" or "UID:GID", as Docker's --user reads them, in the text of
 * the two files. A number needs no entry; group 0 is then the group.
 */
int find_identity(const char *user, const char *passwd, const char *group,
                  struct identity *identity, struct report *report);

/* The same with the files of the root directory of this process; a missing file is an empty one. */
int look_up_identity(const char *user, struct identity *identity, struct report *report);

#endif
