"""What appendix D adds to chapter 5's training loop: warm-up, cosine decay, clipping.

`train_model` is `train_model_simple` with all three, under the book's signature. What
each of them buys is not measured here.
"""

import math

import torch

from ch05.gpt_train import calc_loss_batch, evaluate_model, generate_and_print_sample


def learning_rate_at(
    step, total_steps, warmup_steps, peak_lr, initial_lr=3e-05, min_lr=1e-6
):
    """The learning rate of a step, counted from 0 (sections D.1 and D.2).

    From initial_lr up a straight line, to peak_lr at step warmup_steps; then down half
    a cosine, which would reach min_lr at step total_steps, after the last.
    """
    if step < warmup_steps:
        return initial_lr + step * (peak_lr - initial_lr) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)  # 0 up to below 1
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def find_highest_gradient(model):
    """The largest number in any gradient of a model; None if there is none (D.3)."""
    gradients = [p.grad.max() for p in model.parameters() if p.grad is not None]
    return max(gradients) if gradients else None


def train_model(
    model,
    train_loader,
    val_loader,
    optimizer,
    device,
    n_epochs,
    eval_freq,
    eval_iter,
    start_context,
    tokenizer,
    warmup_steps,
    initial_lr=3e-05,
    min_lr=1e-6,
):
    """Chapter 5's loop with a learning rate for each step and clipping (D.4).

    The optimizer's learning rate is the peak. Gradients are clipped to a norm of 1 from
    the end of the warm-up on, its last step included. Returns (train_losses,
    val_losses, track_tokens_seen, track_lrs); the rates are those of all steps.
    """
    train_losses, val_losses, track_tokens_seen, track_lrs = [], [], [], []
    tokens_seen, global_step = 0, -1
    peak_lr = optimizer.param_groups[0]["lr"]
    total_steps = len(train_loader) * n_epochs

    for epoch in range(n_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            global_step += 1
            lr = learning_rate_at(
                global_step, total_steps, warmup_steps, peak_lr, initial_lr, min_lr
            )
            for param_group in optimizer.param_groups:
                param_group["lr"] = lr
            track_lrs.append(lr)

            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            if global_step >= warmup_steps:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            tokens_seen += input_batch.numel()

            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter
                )
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(
                    f"Ep {epoch + 1} (Iter {global_step:06d}): "
                    f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
                )
        generate_and_print_sample(model, tokenizer, device, start_context)

    return train_losses, val_losses, track_tokens_seen, track_lrs
