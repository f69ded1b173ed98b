/* Ports of virtio-user: each is the front-end, as a guest is, of one vhost-user socket. Knows nothing of patterns. */
#ifndef PORTS_H
#define PORTS_H

#include <stdint.h>

#include <rte_mbuf.h>

#define BURST 32

void ports_begin(const char *program);
uint16_t port_open(const char *socket);
struct rte_mempool *port_buffers(void);

#endif
