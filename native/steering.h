// To which queue of a TAP the kernel gives a frame.
//
// Left alone, the driver follows what we write: a flow goes to the queue that its last answer was written
// to, also while frames of it wait in another (tun_flow_update in drivers/net/tun.c), so that two threads
// may send them out of order. A program in its place looks at nothing but the frame: TCP and SCTP go by addresses
// and ports, UDP, fragments and other IP by addresses, all else by stations.

#pragma once

// Whether there can be such a program. Returns 0, or -errno: EPERM without CAP_BPF (before Linux 5.8:
// CAP_SYS_ADMIN). Each is loaded once, for all TAPs and threads, for as long as the process lives.
int can_steer();

// Gives it to the TAP behind a queue; or else the driver goes on as it does.
void steer_by_flow(int queue);

// It has so many queues, two or more, and a quarter of them is for ARP, ICMP and ICMPv6, with it neighbour discovery:
// no stream is before them then, and a flood of them is before a part of the others. But fragments of IPv4, what is
// behind an extension header of IPv6, or behind two tags go where flows do. If it cannot be loaded all is spread over
// all.
void steer_apart(int queue, int queues);

// Takes the time for that now.
void prepare_to_steer_apart(int queues);

// From now on all goes to the queue that was opened first.
void steer_to_first(int queue);
