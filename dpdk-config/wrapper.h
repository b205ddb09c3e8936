/* What bindgen reads. It sees more than it keeps: the allowlist is in build.rs. */
#include <rte_config.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

#include "shim.h"

/* bindgen skips constants that are made by a function-like macro. */
static const uint64_t GW_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t GW_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t GW_RSS_UDP = RTE_ETH_RSS_UDP;
static const uint64_t GW_RSS_ESP = RTE_ETH_RSS_ESP;
static const uint64_t GW_RSS_FIELDS =
	RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_ESP;
static const uint32_t GW_LCORE_ID_ANY = LCORE_ID_ANY;
static const int32_t GW_SOCKET_ID_ANY = SOCKET_ID_ANY;
