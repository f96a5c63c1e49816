// Work off JavaScript's thread that settles a promise.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

namespace conan {

struct Failure {
  std::string code, message;

  Napi::Error to_js(Napi::Env env) const {
    Napi::Error error = Napi::Error::New(env, message);
    error.Set("code", Napi::String::New(env, code));
    return error;
  }
};

/// Runs `action`; true if it ended well.
template <class Action>
bool guarded(Failure& failure, const Action& action) {
  try {
    action();
    return true;
  } catch (const Error& error) {
    failure = {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    failure = {"OUT_OF_MEMORY", "no memory"};
  } catch (const std::exception& error) {
    failure = {"INTERNAL", error.what()};
  }
  return false;
}

/// Made, settled and destroyed on JavaScript's thread.
class Task {
 public:
  using Work = std::function<void()>;
  using Finish = std::function<Napi::Value(Napi::Env)>;

  /// `work` runs on one of libuv's threads, `finish` makes the promise's value from what it left behind.
  static Napi::Value run(Napi::Env env, Work work, Finish finish);
  /// The same for work that waits for a device most of the time: on a thread of its own, as libuv has four for all of a program's files, and for
  /// decoding what the device is to have next.
  static Napi::Value wait(Napi::Env env, Work work, Finish finish);

 private:
  class Queued;
  class Waiters;

  Task(Napi::Env env, Work work, Finish finish) : deferred_(Napi::Promise::Deferred::New(env)), work_(std::move(work)), finish_(std::move(finish)) {}

  void execute() { failed_ = !guarded(failure_, work_); }
  void settle(Napi::Env env) {
    try {
      if (failed_) deferred_.Reject(failure_.to_js(env).Value());
      else deferred_.Resolve(finish_(env));
    } catch (const Napi::Error& error) {  // no memory for the value
      deferred_.Reject(error.Value());
    }
  }

  Napi::Promise::Deferred deferred_;
  Work work_;
  Finish finish_;
  Failure failure_;
  bool failed_ = false;
};

class Task::Queued : public Napi::AsyncWorker {
 public:
  Queued(Napi::Env env, std::unique_ptr<Task> task) : Napi::AsyncWorker(env), task_(std::move(task)) {}

 protected:
  void Execute() override { task_->execute(); }
  void OnOK() override { task_->settle(Env()); }

 private:
  std::unique_ptr<Task> task_;
};

inline Napi::Value Task::run(Napi::Env env, Work work, Finish finish) {
  std::unique_ptr<Task> task(new Task(env, std::move(work), std::move(finish)));
  Napi::Promise promise = task->deferred_.Promise();
  (new Queued(env, std::move(task)))->Queue();  // deletes itself
  return promise;
}

/// As many threads as there were such tasks at a time. Each environment of JavaScript (node:worker_threads) has its own, which last as long.
class Task::Waiters {
 public:
  explicit Waiters(Napi::Env env) : settled_(Settled::New(env, "conan-embedding", 0, 1, this)) {
    settled_.Unref(env);  // threads without work keep no program from ending
    // Runs before the one by which `settled_` ends, which nobody may call afterwards.
    env.AddCleanupHook([](Waiters* self) { self->end(), self->tasks_.clear(); }, this);
    // process.exit() runs no hooks, and then destroys what passes use.
    const auto process = env.Global().Get("process").As<Napi::Object>();
    const auto exits = Napi::Function::New(env, [this](const Napi::CallbackInfo&) { end(); });
    process.Get("once").As<Napi::Function>().Call(process, {Napi::String::New(env, "exit"), exits});
  }

  void add(Napi::Env env, std::unique_ptr<Task> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tasks_.size() >= idle_) threads_.emplace_back([this] { work(); });
    tasks_.push_back(std::move(task));
    if (unsettled_++ == 0) settled_.Ref(env);
    changed_.notify_one();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      ++idle_;
      changed_.wait(lock, [&] { return ending_ || !tasks_.empty(); });
      --idle_;
      if (ending_) return;
      std::unique_ptr<Task> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task->execute();
      settled_.NonBlockingCall(task.release());
      lock.lock();
    }
  }

  static void settle(Napi::Env env, Napi::Function, Waiters* self, Task* given) {
    std::unique_ptr<Task> task(given);
    if (env == nullptr) return;  // it ends
    if (--self->unsettled_ == 0) self->settled_.Unref(env);
    task->settle(env);
  }
  using Settled = Napi::TypedThreadSafeFunction<Waiters, Task, settle>;

  /// Returns when nothing runs any more.
  void end() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  Settled settled_;
  int64_t unsettled_ = 0;  // JavaScript's thread knows
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Task>> tasks_;  // that no thread has begun
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool ending_ = false;
};

inline Napi::Value Task::wait(Napi::Env env, Work work, Finish finish) {
  auto* waiters = env.GetInstanceData<Waiters>();
  if (!waiters) env.SetInstanceData(waiters = new Waiters(env));
  std::unique_ptr<Task> task(new Task(env, std::move(work), std::move(finish)));
  Napi::Promise promise = task->deferred_.Promise();
  Failure failure;
  if (!guarded(failure, [&] { waiters->add(env, std::move(task)); })) throw failure.to_js(env);
  return promise;
}

}  // namespace conan
