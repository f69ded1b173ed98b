/* DPDK without huge pages and without files of its own: memory is one memfd, which the other end maps. */

#include "ports.h"

#include <stdio.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_ethdev.h>

/* Like QEMU's default for virtio-net. */
#define QUEUE_SIZE 256
#define BUFFERS 16384
#define BUFFERS_CACHED 256

static struct rte_mempool *buffers;

void ports_begin(const char *program)
{
    char *words[] = {(char *)program, "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "-m", "256",
                     "-l", "0", "--log-level=lib.eal:error", NULL};
    if (rte_eal_init(RTE_DIM(words) - 1, words) < 0)
        rte_exit(EXIT_FAILURE, "DPDK does not start: %s\n", rte_strerror(rte_errno));
    buffers = rte_pktmbuf_pool_create("buffers", BUFFERS, BUFFERS_CACHED, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
                                      rte_socket_id());
    if (buffers == NULL)
        rte_exit(EXIT_FAILURE, "no memory for %d buffers\n", BUFFERS);
}

struct rte_mempool *port_buffers(void)
{
    return buffers;
}

uint16_t port_open(const char *socket)
{
    static unsigned int count;
    char name[32], words[256];
    uint16_t port;
    struct rte_eth_conf configuration = {0};

    snprintf(name, sizeof(name), "net_virtio_user%u", count);
    /* A split ring with mergeable buffers and without order, as Linux uses it. */
    snprintf(words, sizeof(words), "path=%s,queues=1,queue_size=%d,mrg_rxbuf=1,in_order=0,mac=02:0c:00:00:00:%02x",
             socket, QUEUE_SIZE, count);
    count++;
    if (rte_eal_hotplug_add("vdev", name, words) != 0 || rte_eth_dev_get_port_by_name(name, &port) != 0)
        rte_exit(EXIT_FAILURE, "%s: no port on this socket\n", socket);
    if (rte_eth_dev_configure(port, 1, 1, &configuration) != 0 ||
        rte_eth_rx_queue_setup(port, 0, QUEUE_SIZE, rte_socket_id(), NULL, buffers) != 0 ||
        rte_eth_tx_queue_setup(port, 0, QUEUE_SIZE, rte_socket_id(), NULL) != 0 || rte_eth_dev_start(port) != 0)
        rte_exit(EXIT_FAILURE, "%s: the port does not start\n", socket);
    return port;
}
