/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_LAUNCH_H
#define HUTCH_LAUNCH_H

/*
 * The launch phase: take sockets from `engine`, a byte each, until it is closed, and for each a
 * WIRE_LAUNCH; start the sandbox's init, which answers it. `name`, the last argument of this
 * process and so of the init, becomes the sandbox's id there, by which engines find an init that
 * was never recorded. Returns an exit status; the init returns from here too, inside the sandbox,
 * by serving.
 */
int launch_main(int engine, char *name);

#endif
