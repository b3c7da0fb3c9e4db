/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_LAUNCH_H
#define HUTCH_LAUNCH_H

/*
 * The launch phase: read a WIRE_LAUNCH from `engine`, start the sandbox's init, which answers it,
 * and return an exit status. The init returns from here too, inside the sandbox, by serving.
 */
int launch_main(int engine);

#endif
