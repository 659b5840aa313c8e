// SPDX-License-Identifier: MIT
// Made up, in the place of NVIDIA's second module: gets the number that its device file is made with.

#include <linux/fs.h>
#include <linux/module.h>

static dev_t number;

static int __init start(void)
{
	return alloc_chrdev_region(&number, 0, 1, "nvidia-uvm");
}

module_init(start);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Made up, drives nothing");
