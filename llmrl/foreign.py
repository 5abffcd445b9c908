"""What other toolkits (TRL, verl, OpenRLHF, transformers) call the things of a recipe. Used in error messages only."""

from __future__ import annotations

FOREIGN: dict[str, str] = {
    **dict.fromkeys(["model_name_or_path", "base_model", "pretrain", "model_id"], "model.path"),
    **dict.fromkeys(["dtype", "torch_dtype", "bf16", "fp16", "fp32"], "model.precision"),
    "attn_implementation": "model.attention",
    **dict.fromkeys(["use_peft", "peft", "peft_config", "lora_config"], "model.lora"),
    **dict.fromkeys(["lora_r", "lora_rank"], "model.lora.rank"),
    "lora_alpha": "model.lora.alpha",
    **dict.fromkeys(["target_modules", "lora_target_modules"], "model.lora.targets"),
    **dict.fromkeys(["dataset", "dataset_name", "dataset_path", "train_files", "prompt_data"], "data.source"),
    **dict.fromkeys(["dataset_config", "dataset_config_name"], "data.subset"),
    **dict.fromkeys(["dataset_split", "dataset_train_split"], "data.split"),
    **dict.fromkeys(["max_prompt_length", "prompt_max_len"], "data.max_prompt_tokens"),
    "system_prompt": "data.system",
    "max_samples": "data.limit",
    **dict.fromkeys(["num_generations", "n_samples_per_prompt", "rollout_n"], "rollout.group_size"),
    **dict.fromkeys(
        ["max_completion_length", "max_new_tokens", "max_response_length", "response_length", "generate_max_len"],
        "rollout.max_tokens",
    ),
    **dict.fromkeys(["use_vllm", "vllm_mode", "vllm_server_base_url"], "rollout.engine: vllm"),
    **dict.fromkeys(["train_batch_size", "rollout_batch_size", "generation_batch_size"], "rollout.prompts_per_step"),
    "lr": "training.learning_rate",
    **dict.fromkeys(
        ["per_device_train_batch_size", "gradient_accumulation_steps", "micro_batch_size", "micro_train_batch_size"],
        "training.tokens_per_micro_batch (the update does not depend on it)",
    ),
    **dict.fromkeys(["max_steps", "total_training_steps", "num_steps"], "training.steps"),
    **dict.fromkeys(
        ["num_train_epochs", "total_epochs", "num_episodes", "max_epochs"],
        "training.steps (left out: one pass over the data)",
    ),
    **dict.fromkeys(["lr_scheduler_type", "lr_scheduler"], "training.schedule"),
    **dict.fromkeys(["warmup_ratio", "lr_warmup_steps_ratio", "lr_warmup_ratio"], "training.warmup_steps (a count)"),
    **dict.fromkeys(["max_norm", "grad_clip", "clip_grad"], "training.max_grad_norm"),
    **dict.fromkeys(["adam_beta1", "adam_beta2"], "training.betas"),
    **dict.fromkeys(["save_steps", "save_freq"], "training.save_every"),
    "save_total_limit": "training.keep_checkpoints",
    **dict.fromkeys(["beta", "kl_loss_coef", "init_kl_coef"], "algorithm.kl_coef (algorithm.beta for dpo)"),
    **dict.fromkeys(["epsilon", "cliprange", "clip_ratio", "eps_clip"], "algorithm.clip_low and clip_high"),
    "epsilon_high": "algorithm.clip_high",
    **dict.fromkeys(["num_iterations", "ppo_epochs", "num_ppo_epochs"], "algorithm.epochs"),
    **dict.fromkeys(["ppo_mini_batch_size", "num_mini_batches"], "algorithm.minibatches (a count)"),
    **dict.fromkeys(["loss_type", "adv_estimator", "trainer_type"], "algorithm.name"),
    "loss_agg_mode": "algorithm.reduce",
    **dict.fromkeys(["center_rewards_coefficient", "center_coef"], "algorithm.centre_coef"),
    "step_separator": "data.step_tag",
    "lam": "algorithm.gae_lambda",
    "cliprange_value": "algorithm.value_clip",
    "vf_coef": "algorithm.value_coef",
    **dict.fromkeys(["reward_funcs", "reward_model", "reward_function", "rewards"], "scorers"),
    **dict.fromkeys(["eval_steps", "test_freq"], "evaluation.<name>.every"),
    **dict.fromkeys(["report_to", "logger", "use_wandb"], "tracking.trackers"),
    **dict.fromkeys(["output_dir", "save_path", "default_local_dir"], "out"),
    **dict.fromkeys(["run_name", "experiment_name"], "name"),
    "resume_from_checkpoint": "resume",
}


def ours(key: str) -> str:
    """' Here it is rollout.group_size.' for another toolkit's name, else an empty string."""
    return f" Here it is {FOREIGN[key]}." if key in FOREIGN else ""
