/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_DETACHED_H
#define HUTCH_DETACHED_H

#include "running.h"

/*
 * Watch a program that no client need stay for: tell `connection` that it runs and close that,
 * keep its output in the log, serve the clients of its control socket, write the exit record.
 * Returns when no more output can come, or, for the sandbox's main program, when that has ended.
 */
void watch_detached(struct running *running, const struct exec *exec, int connection);

#endif
