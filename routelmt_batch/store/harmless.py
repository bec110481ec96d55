"""Arguments of vLLM that change no translation, each group with its reason. A job may go on with others.

Every other argument is taken for one that may change a text. "Same computation" means that at most rare ties
between tokens fall otherwise, as between two schedules: see docs/pages/reliability.md.
"""

from __future__ import annotations

from typing import Final

_WHY: Final[dict[str, str]] = {
    "memory: where weights and cache lie, and how much there is": "gpu_memory_utilization "
    "kv_cache_memory_bytes num_gpu_blocks_override cpu_offload_gb cpu_offload_params kv_offloading_backend "
    "kv_offloading_size offload_backend offload_group_size offload_num_in_group offload_params "
    "offload_prefetch_step enable_sleep_mode enable_cumem_allocator",
    "loading: how the same files are read": "download_dir max_parallel_loading_workers "
    "safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads "
    "pt_load_map_location use_tqdm_on_load",
    "logging: what is counted, traced and shown": "disable_log_stats aggregate_engine_logging "
    "enable_logging_iteration_details collect_detailed_traces otlp_traces_endpoint "
    "show_hidden_metrics_for_version kv_cache_metrics kv_cache_metrics_sample cudagraph_metrics "
    "enable_mfu_metrics enable_mm_processor_stats per_request_spec_decode_metrics "
    "enable_layerwise_nvtx_tracing profiler_config ray_workers_use_nsight kv_events_config "
    "jit_monitor_mode jit_monitor_verbose served_model_name",
    "schedule: which rows are computed together, same computation": "max_num_scheduled_tokens "
    "long_prefill_token_threshold enable_chunked_prefill enable_prefix_caching prefix_caching_hash_algo "
    "async_scheduling scheduling_policy scheduler_reserve_full_isl stream_interval max_num_queued_reqs "
    "max_num_queued_tokens prefill_schedule_interval prefix_cache_retention_interval",
    "speed: the same computation, captured or compiled ahead": "enforce_eager cudagraph_capture_sizes "
    "max_cudagraph_capture_size enable_flashinfer_autotune",
    "processes: how those of one engine are started and found": "distributed_executor_backend "
    "distributed_timeout_seconds cpu_distributed_timeout_seconds master_addr master_port numa_bind "
    "numa_bind_cpus numa_bind_nodes disable_custom_all_reduce shutdown_timeout renderer_num_workers "
    "fail_on_environ_validation",
}
HARMLESS: Final[dict[str, str]] = {key: why for why, keys in _WHY.items() for key in keys.split()}
