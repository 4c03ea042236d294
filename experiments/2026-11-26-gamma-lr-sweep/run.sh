#!/bin/sh
# Twelve runs, the table, the same command again, and other seeds of the best rate. Needs runs/quickstart; run it where `runs` lies.
set -e
train="experiment=shapes_epsilon max_steps=400 lr_schedule.warmup_steps=20 callbacks.validation.every=200 callbacks.previews=null callbacks.plots=null threads=1 model.block_out_channels=[32,64]"
sweep="name=gamma_lr objective.min_snr_gamma=1,3,5 optimizer.lr=5.0e-4,2.0e-3,8.0e-3,3.2e-2"
sdscratch train -m $train $sweep
sdscratch train -m $train $sweep  # nothing is left to do
sdscratch sweep-table runs/gamma_lr
sdscratch train -m $train name=gamma_lr_seeds seed=1,2 objective.min_snr_gamma=1,3,5 optimizer.lr=8.0e-3
sdscratch sweep-table runs/gamma_lr_seeds
