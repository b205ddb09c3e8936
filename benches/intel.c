/* What the bench needs of Intel's library: its direct AES-GCM functions. They are called from Rust by these pointers,
 * so the shim costs no call. */
#include <stddef.h>
#include <stdint.h>

#include <intel-ipsec-mb.h>

typedef struct {
	const char *version;
	uint32_t arch;
	/* Not 0 where it has VAES and VPCLMULQDQ. */
	uint32_t vector;
	size_t key_size;
	size_t context_size;
	/* In order: 128-bit key, 256-bit key. */
	aes_gcm_pre_t expand[2];
	aes_gcm_enc_dec_t seal[2];
	aes_gcm_enc_dec_t open[2];
} intel_gcm;

/* Fills *out with the functions that the library itself chooses for this processor. Returns 0, or -1 where it fails. The
 * manager is kept for as long as the process lives. */
int simplon_intel_gcm(intel_gcm *out)
{
	const uint64_t vector = IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;
	IMB_ARCH arch = IMB_ARCH_NONE;
	IMB_MGR *mgr = alloc_mb_mgr(0);

	if (mgr == NULL)
		return -1;
	init_mb_mgr_auto(mgr, &arch);
	if (arch == IMB_ARCH_NONE || imb_get_errno(mgr) != 0)
		return -1;
	*out = (intel_gcm) {
		.version = imb_get_version_str(),
		.arch = (uint32_t)arch,
		.vector = (mgr->features & vector) == vector,
		.key_size = sizeof(struct gcm_key_data),
		.context_size = sizeof(struct gcm_context_data),
		.expand = { mgr->gcm128_pre, mgr->gcm256_pre },
		.seal = { mgr->gcm128_enc, mgr->gcm256_enc },
		.open = { mgr->gcm128_dec, mgr->gcm256_dec },
	};
	return 0;
}
