#include "shim.h"

#include <stddef.h>
#include <stdio.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_thash.h>

/* Rust reads and writes these fields itself (src/dpdk/mbuf.rs). */
_Static_assert(offsetof(struct rte_mbuf, buf_addr) == 0, "rte_mbuf.buf_addr moved");
_Static_assert(offsetof(struct rte_mbuf, data_off) == 16, "rte_mbuf.data_off moved");
_Static_assert(offsetof(struct rte_mbuf, refcnt) == 18, "rte_mbuf.refcnt moved");
_Static_assert(offsetof(struct rte_mbuf, nb_segs) == 20, "rte_mbuf.nb_segs moved");
_Static_assert(offsetof(struct rte_mbuf, port) == 22, "rte_mbuf.port moved");
_Static_assert(offsetof(struct rte_mbuf, ol_flags) == 24, "rte_mbuf.ol_flags moved");
_Static_assert(offsetof(struct rte_mbuf, pkt_len) == 36, "rte_mbuf.pkt_len moved");
_Static_assert(offsetof(struct rte_mbuf, data_len) == 40, "rte_mbuf.data_len moved");
_Static_assert(offsetof(struct rte_mbuf, vlan_tci) == 42, "rte_mbuf.vlan_tci moved");
_Static_assert(offsetof(struct rte_mbuf, buf_len) == 54, "rte_mbuf.buf_len moved");
_Static_assert(sizeof(struct rte_mbuf) == 128, "rte_mbuf changed size");

int gw_errno(void)
{
	return rte_errno;
}

unsigned int gw_lcore_id(void)
{
	return rte_lcore_id();
}

int gw_log_to_stderr(void)
{
	return rte_openlog_stream(stderr);
}

uint64_t gw_tsc(void)
{
	return rte_rdtsc();
}

/* For drivers: exported, but in no header that is installed. */
struct rte_eth_dev *rte_eth_dev_allocated(const char *name);
int rte_eth_dev_callback_process(struct rte_eth_dev *dev, enum rte_eth_event_type event, void *ret_param);

int gw_tell_link(uint16_t port)
{
	char name[RTE_ETH_NAME_MAX_LEN];
	struct rte_eth_dev *dev = NULL;

	if (rte_eth_dev_get_name_by_port(port, name) == 0)
		dev = rte_eth_dev_allocated(name);
	return dev == NULL ? -1 : rte_eth_dev_callback_process(dev, RTE_ETH_EVENT_INTR_LSC, NULL);
}

uint16_t gw_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, mbufs, count);
}

uint16_t gw_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

struct rte_mempool *gw_packed_pool_create(const char *name, unsigned int count, unsigned int cache, uint16_t data_room)
{
	struct rte_pktmbuf_pool_private room = { .mbuf_data_room_size = data_room };
	unsigned int flags = rte_eal_iova_mode() == RTE_IOVA_VA ? RTE_MEMPOOL_F_NO_IOVA_CONTIG : 0;
	struct rte_mempool *pool = rte_mempool_create_empty(name, count, sizeof(struct rte_mbuf) + data_room, cache,
							    sizeof(room), SOCKET_ID_ANY, flags);
	int failed;

	if (pool == NULL)
		return NULL;
	failed = rte_mempool_set_ops_byname(pool, rte_mbuf_best_mempool_ops(), NULL);
	if (failed == 0) {
		rte_pktmbuf_pool_init(pool, &room);
		failed = rte_mempool_populate_default(pool);
	}
	if (failed < 0) {
		rte_mempool_free(pool);
		rte_errno = -failed;
		return NULL;
	}
	rte_mempool_obj_iter(pool, rte_pktmbuf_init, NULL);
	return pool;
}

unsigned int gw_mempool_chunks(const struct rte_mempool *pool)
{
	return pool->nb_mem_chunks;
}

int gw_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

unsigned int gw_ring_dequeue_burst(struct rte_ring *ring, struct rte_mbuf **mbufs, unsigned int count)
{
	return rte_ring_dequeue_burst(ring, (void **)mbufs, count, NULL);
}

uint32_t gw_softrss(const uint32_t *words, uint32_t count, const uint32_t *key)
{
	return rte_softrss((uint32_t *)(uintptr_t)words, count, (const uint8_t *)key);
}

uint32_t gw_softrss_be(const uint32_t *words, uint32_t count, const uint32_t *converted_key)
{
	return rte_softrss_be((uint32_t *)(uintptr_t)words, count, (const uint8_t *)converted_key);
}
