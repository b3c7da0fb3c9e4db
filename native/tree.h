/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process tree below this process. It is a subreaper, prctl(2), so that whatever a program
 * starts stays below it, daemons that called setsid(2) included, until they end.
 */
#ifndef HUTCH_TREE_H
#define HUTCH_TREE_H

#include <stdbool.h>
#include <sys/types.h>

/* The parent and the state in the text of /proc/PID/stat, proc(5); -1 if it is none. */
pid_t parse_stat(const char *text, char *state);

/* Send a signal to every descendant that has not ended; false if there was none. */
bool signal_descendants(int signum);

/* Stop descendants until none runs that could fork away from a signal; gives up in the end. */
void freeze_descendants(void);

#endif
