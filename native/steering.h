// To which queue of a TAP the kernel gives a frame.
//
// Left alone, the driver follows what we write: a flow goes to the queue that its last answer was written
// to, also while frames of it wait in another (tun_flow_update in drivers/net/tun.c), so that two threads
// may send them out of order. A program in its place looks at nothing but the frame: TCP and SCTP go by addresses
// and ports, UDP and other IP by addresses, all else by stations.

#pragma once

// Whether there can be such a program. Returns 0, or -errno: EPERM without CAP_BPF (before Linux 5.8:
// CAP_SYS_ADMIN). Each is loaded once, for all TAPs and threads, for as long as the process lives.
int can_steer();

// Gives it to the TAP behind a queue; or else the driver goes on as it does.
void steer_by_flow(int queue);

// So many queues were opened after the first: flows are for those, and ARP, ICMP and ICMPv6, with it neighbour
// discovery, have the first for themselves, so that no stream is before them; but not fragments of IPv4, nor what
// is behind an extension header of IPv6, or behind two tags. If it cannot be loaded all is spread over all.
void steer_past_first(int queue, int others);

// Takes the time for that now.
void prepare_to_steer_past_first(int others);

// From now on all goes to the queue that was opened first.
void steer_to_first(int queue);
