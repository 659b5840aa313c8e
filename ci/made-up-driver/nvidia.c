// SPDX-License-Identifier: MIT
// Made up, in the place of NVIDIA's module: drives nothing. It asks the kernel for the cryptography that the encrypted
// channel to a GPU is made of, and shows itself as the module does that found one GPU.

#include <crypto/aead.h>
#include <crypto/akcipher.h>
#include <crypto/hash.h>
#include <crypto/kpp.h>
#include <crypto/sig.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#define MAJOR_NUMBER 195
#define GPU "driver/nvidia/gpus/0000:01:00.0"

// Ends loading with the kernel's error where an algorithm is missing.
#define NEEDS(allocated, release)                 \
	do {                                      \
		void *found = (allocated);        \
		if (IS_ERR(found))                \
			return PTR_ERR(found);    \
		release(found);                   \
	} while (0)

static const struct file_operations operations = { .owner = THIS_MODULE };

static int information(struct seq_file *file, void *unused)
{
	seq_puts(file, "Model: \t\t made up\nDevice Minor: \t 0\n");
	return 0;
}

static int __init start(void)
{
	int error;

	NEEDS(crypto_alloc_aead("gcm(aes)", 0, 0), crypto_free_aead);
	NEEDS(crypto_alloc_kpp("ecdh-nist-p384", 0, 0), crypto_free_kpp);
	NEEDS(crypto_alloc_sig("ecdsa-nist-p384", 0, 0), crypto_free_sig);
	NEEDS(crypto_alloc_akcipher("rsa", 0, 0), crypto_free_akcipher);
	NEEDS(crypto_alloc_shash("hmac(sha256)", 0, 0), crypto_free_shash);
	NEEDS(crypto_alloc_shash("hmac(sha384)", 0, 0), crypto_free_shash);
	error = register_chrdev(MAJOR_NUMBER, "nvidia", &operations);
	if (error)
		return error;
	if (!proc_mkdir("driver/nvidia", NULL) || !proc_mkdir("driver/nvidia/gpus", NULL) || !proc_mkdir(GPU, NULL) ||
	    !proc_create_single(GPU "/information", 0444, NULL, information))
		return -ENOMEM;
	return 0;
}

module_init(start);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Made up, drives nothing");
